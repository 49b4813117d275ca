"""A mount under other ids whose source is in the container's own root: it takes two.

That the source is there, only the container's process can see: some mount before this
one has put it there. To translate the owners of a filesystem's files takes power over
that filesystem, and in a user namespace of its own the process has none. So the steps
of its root stop there for a moment:

    container                         runtime
      copy of the mount, as an fd ──▶   MOUNT_ATTR_IDMAP on it
      attach it               ◀── go

See open_tree(2), mount_setattr(2), "Idmapped mounts".
"""

import os

from labkit.container.channel import Child, Spawned, Step
from labkit.container.steps import MakeMounts
from labkit.ground.dataclass import dataclass, replace
from labkit.isolation import mount_options, mounts


def split(plan: mounts.Plan, alone: bool) -> tuple[Step, ...]:
    """Return the steps that make a plan. `alone`: its process has no power over the host's filesystems."""
    steps: list[Step] = []
    some: list[mounts.MountStep] = []
    for step in plan.steps:
        if alone and isinstance(step, mount_options.Mount) and step.inside and step.id_maps:
            steps += [MakeMore(replace(plan, steps=tuple(some))), MountUnderIds(step, len(steps))]
            some = []
        else:
            some.append(step)
    steps.append(MakeMore(replace(plan, steps=tuple(some))))
    first = MakeMounts(steps[0].plan) if isinstance(steps[0], MakeMounts) else steps[0]
    return (first, *steps[1:])


@dataclass(frozen=True)
class MakeMore(MakeMounts):
    """What comes in the root after that."""

    def describe(self) -> list[str]:
        return self.plan.describe()[1:]

    def execute(self, child: Child) -> None:
        self.plan.go_on(child.root)


@dataclass(frozen=True)
class MountUnderIds(Step):
    """Its parent has the power over the filesystem."""

    waits = True

    mount: mount_options.Mount
    number: int

    @property
    def says(self) -> str:  # type: ignore[override]  # of each such step its own
        """Return the kind of its message."""
        return f"translate {self.number}"

    def describe(self) -> str:
        return self.mount.describe()

    def execute(self, child: Child) -> None:
        tree = replace(self.mount, id_maps=None).bound(child.root)
        child.say(self.says, fds=[tree])
        child.await_go()
        replace(self.mount, tree=tree).execute(child.root)

    def answer(self, spawned: Spawned, value: object, fds: list[int]) -> bool:
        if len(fds) != 1:
            return False
        try:
            self.mount.translate(fds[0])
        finally:
            os.close(fds[0])
        return True
