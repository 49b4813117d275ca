"""`lab doctor`: what this kernel and machine have of what the chapters need, and what is lost without it.

Nothing is guessed from a version: each feature is tried. Tests and
chapters ask by the same names: `doctor.find("overlay").found`.
"""

import argparse
import functools
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from labkit.app import kernel_probes, machine_probes  # noqa: F401 - importing them registers the probes
from labkit.app.probing import PROBES
from labkit.ground import proc
from labkit.ground.dataclass import dataclass
from labkit.ground.errors import LabError, NotFound, errno_name

KINDS = {
    "namespace": "namespaces",
    "filesystem": "filesystems",
    "cgroup": "control groups",
    "syscall": "syscalls and powers",
    "network": "network",
    "machine": "machine",
    "tool": "commands",
}


@dataclass(frozen=True)
class Finding:
    """What one probe found, in words."""

    name: str
    kind: str
    found: bool
    detail: str
    lost: str
    vital: bool


@functools.cache
def find(name: str) -> Finding:
    """Try one feature by name and return its Finding, the same one for the rest of this process."""
    if name not in PROBES:
        raise NotFound(f"the doctor knows no {name!r}", "the names: " + ", ".join(PROBES))
    probe = PROBES[name]
    try:
        found, detail = True, probe.look() or ""
    except LabError as error:
        found, detail = False, error.message
    except OSError as error:
        found, detail = False, f"{error.filename or 'it'}: {errno_name(error.errno or 0)}"
    return Finding(name, probe.kind, found, str(detail), probe.lost, probe.vital)


def report() -> list[Finding]:
    """Try everything in the table; return a list of Findings."""
    return [find(name) for name, probe in PROBES.items() if probe.kind]


def where() -> dict[str, str]:
    """Say on what machine this kernel runs, as far as the kernel can see: {question: answer}."""
    places = {
        "kernel": f"Linux {platform.release()} on {platform.machine()}",
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "unknown"),
        "virtualisation": _virtualisation(),
        "systemd": "runs this machine" if proc.process(1).name == "systemd" else "does not run here",
    }
    if not any(mount.target == "/" for mount in proc.mounts()):
        places["root"] = "a chroot, whose / is no mount: no mount or user namespace will work from in here"
    return places


def _virtualisation() -> str:
    """Say what the kernel sees of a hypervisor."""
    named = "none"
    if shutil.which("systemd-detect-virt"):
        done = subprocess.run(["systemd-detect-virt"], capture_output=True, text=True, check=False)
        named = done.stdout.strip() or "none"
    signs = [] if named == "none" else [named]
    if re.search(r"^flags\s*:.*\bhypervisor\b", proc.read("/proc/cpuinfo"), re.MULTILINE):
        signs.append("the CPU has the hypervisor flag")
    for part in ("sys_vendor", "product_name"):
        file = Path("/sys/class/dmi/id", part)
        if file.exists() and file.read_text().strip():
            signs.append(file.read_text().strip())
    return ", ".join(signs) or "none that the kernel can see"


def main(argv: list[str]) -> int:
    """Print the table; return 1 if chapters 02, 04, 06 or 12 can't be done here, else 0."""
    parser = argparse.ArgumentParser("lab doctor", description="Say what this machine has of what the chapters need.")
    parser.parse_args(argv)
    print("where you are")
    for question, answer in where().items():
        print(f"  {question:<16}{answer}")
    findings = report()
    width = max(len(finding.name) for finding in findings)
    for kind, title in KINDS.items():
        print(f"\n{title}")
        for finding in findings:
            if finding.kind == kind:
                _print(finding, width)
    return _verdict(findings)


def _print(finding: Finding, width: int) -> None:
    print(f"  {'yes' if finding.found else 'NO '} {finding.name:<{width}}  {finding.detail}".rstrip())
    if not finding.found:
        print(f"      {'':<{width}}  → lost: {finding.lost}")


def _verdict(findings: list[Finding]) -> int:
    missing = [finding for finding in findings if not finding.found]
    vital = [finding.name for finding in missing if finding.vital]
    print(f"\n{len(findings) - len(missing)} of {len(findings)} are here.", end=" ")
    if vital:
        root = "" if os.geteuid() == 0 else " You are not root: most of it needs that."
        print(f"Chapters 02, 04, 06 and 12 can't be done without: {', '.join(vital)}.{root}")
        return 1
    print("All chapters can be done; what is missing costs only what is said beside it." if missing else "All is well.")
    return 0
