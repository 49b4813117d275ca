"""The `lab` command's words for the machine and the workshop."""

import sys
from collections.abc import Iterator

from labkit.app.commands import command, parser, table


@command("lsns", "every namespace on this machine, and who is in it")
def _lsns(argv: list[str]) -> None:
    from labkit.isolation import namespaces
    from labkit.lessons.watch import lsns

    words = parser("lsns")
    words.add_argument("-t", "--type", choices=namespaces.KINDS, help="one kind only")
    kind = words.parse_args(argv).type
    rows = [
        (
            str(one.inode),
            one.kind,
            str(one.processes),
            str(one.pid or ""),
            str(one.parent or ""),
            str(one.owner or ""),
            one.command[:60],
        )
        for one in lsns.survey()
        if kind in (None, one.kind)
    ]
    table("INODE,KIND,PROCESSES,PID,PARENT,OWNER,COMMAND", rows)


@command("cgls", "a controller's cgroup tree, labkit's own part or all of it")
def _cgls(argv: list[str]) -> int:
    from labkit.cgroups import cgls

    return cgls.main(argv)


@command("networks", "list the networks that containers are on")
def _networks(argv: list[str]) -> None:
    from labkit.network import bridge

    parser("networks").parse_args(argv)
    rows = []
    for name in bridge.all_networks():
        known = bridge.record(name)
        if known is None:  # the last container on it has ended meanwhile
            continue
        who = ", ".join(
            (user["names"] or [number])[0] + " " + user["address"] for number, user in known["users"].items()
        )
        rows.append((name, known["bridge"], known["subnet"], who))
    table("NETWORK,BRIDGE,SUBNET,CONTAINERS", rows)


@command("clean", "give back what was left behind; --all also ends what runs")
def _clean(argv: list[str]) -> int:
    from labkit.ground import ledger
    from labkit.storage import garbage

    words = parser("clean")
    words.add_argument("-a", "--all", action="store_true")
    options = words.parse_args(argv)
    for path, aside in _set_aside():
        print(f"set aside: {path}, damaged; it is kept as {aside}")
    undone, kept, failed = ledger.clean(everything=options.all)
    for entry in undone:
        print(f"gave back: {entry}")
    reclaimed = garbage.reclaim()
    for folder in reclaimed:
        print(f"gave back: {folder}, left by an earlier boot")
    if kept:
        groups = sorted({entry.group or str(entry) for entry in kept})
        print(
            f"kept, in use by a living process: {', '.join(groups)}\n  → `lab clean --all` ends and removes these too"
        )
    for entry, error in failed:
        print(f"could not give back {entry}: {error}", file=sys.stderr)
    if not (undone or kept or failed or reclaimed):
        print("nothing of labkit's is left on this machine")
    return 125 if failed else 0


def _set_aside() -> Iterator[tuple[str, str]]:
    """Put what is damaged of the files of state where nobody reads it; yield (where it was, where it is)."""
    from labkit.app import server  # noqa: F401 - whoever keeps files of state is to have said so
    from labkit.build import layer_cache  # noqa: F401
    from labkit.ground import state
    from labkit.lessons import coursework
    from labkit.network import bridge  # noqa: F401
    from labkit.storage import garbage

    for error in state.damaged(coursework.files_of_state()):
        yield error.path, state.set_aside(error)
    for name, path, aside in garbage.drop_broken_names():
        print(f"the image {name} is gone with it: pull, load or build it again")
        yield path, aside


@command("doctor", "what this machine has of what the chapters need")
def _doctor(argv: list[str]) -> int:
    from labkit.app import doctor

    return doctor.main(argv)


@command("up", "start JupyterLab with the chapters")
def _up(argv: list[str]) -> int:
    from labkit.app import workshop

    return workshop.up(argv)


@command("reset", "get a fresh copy of a chapter; yours is kept beside it")
def _reset(argv: list[str]) -> None:
    from labkit.lessons import coursework

    words = parser("reset")
    words.add_argument("chapter", nargs="+", help="its number: 04")
    for number in words.parse_args(argv).chapter:
        aside = coursework.reset(number)
        print(f"chapter {number} is fresh" + (f"; yours is kept as {aside.name}" if aside else ""))
    print("a page that shows it already: File, Reload from Disk")


@command("progress", "what you have passed; with a chapter's number each exercise of it")
def _progress(argv: list[str]) -> None:
    from labkit.lessons import coursework

    words = parser("progress")
    words.add_argument("chapter", nargs="?")
    print(coursework.progress(words.parse_args(argv).chapter))


@command("room", "for an instructor: what each seat of a room has passed")
def _room(argv: list[str]) -> int:
    from labkit.app import room

    return room.main(argv)


@command("test", "run all tests")
def _test(argv: list[str]) -> int:
    from labkit.app import workshop

    return workshop.test(argv)


@command("bench", "how long a container takes to start here, against others")
def _bench(argv: list[str]) -> None:
    import runpy

    from labkit.ground import state

    sys.argv = ["lab bench", *argv]
    runpy.run_path(str(state.REPO / "tests/bench/benchmarks.py"), run_name="__main__")
