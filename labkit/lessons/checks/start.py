"""Checks of chapter 00: which process is the virtual machine, and do the containers run."""

from collections.abc import Sequence

from labkit.container.life import Container
from labkit.ground import proc
from labkit.lessons.beside.vm import Guest
from labkit.lessons.checks import Requirements, exercise


@exercise
def is_the_guest(guest: Guest | None, answer: object) -> Requirements:
    """Find the number of the one process that the whole virtual machine is."""
    yield guest is not None, "a virtual machine runs", "the cell that starts it says why it could not"
    assert guest
    yield isinstance(answer, int), "the answer is a number", "an int"
    yield answer in proc.pids(), "a process with that number runs", "the guest must be running: start it again"
    yield (
        answer == guest.pid,
        "it is the virtual machine",
        "which program pretends to be a computer? Look for its name among all processes",
        "it is a child of this notebook: proc.children(os.getpid()), and its name begins with qemu",
    )


@exercise
def all_run(boxes: Sequence[Container], count: int) -> Requirements:
    """Start so many containers that run at the same time, each with process numbers of its own."""
    yield len(boxes) >= count, f"there are {count} of them", f"a list of {count} containers"
    running = [box for box in boxes if box.status == "running"]
    yield len(running) >= count, "all of them run", "Container(…).start(), and a command that goes on: sleep 1000"
    homes = {proc.namespace(box.pid, "pid") for box in running}
    yield len(homes) >= count, "each counts its own processes", "a container each, not one container many times"


@exercise
def proves_one_kernel(said: object, guest: Guest | None = None) -> Requirements:
    """Have a container say something that only this kernel can say."""
    said = str(said).strip()
    yield bool(said), "the container said something", "labkit.run(…).output, or box.exec(…).output"
    yield (
        said == proc.boot_id(),
        "it is the number that this kernel, and only this one, made up when it started",
        "another kernel of the same version must give another answer: the name or version proves nothing",
        "cat /proc/sys/kernel/random/boot_id",
    )
    yield guest is None or said != guest.said["boot"], "the virtual machine says something else", "start it again"
