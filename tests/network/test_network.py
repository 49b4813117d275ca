"""What a container's network promises, each in a world of the test's own: no link, rule or switch of the machine is touched."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import worlds
from timing import until

from labkit.container.life import Container, run
from labkit.container.spec import Spec
from labkit.ground import ledger, state
from labkit.ground.errors import BadValue, InUse, LabError, Unsupported
from labkit.lessons.checks import network as check
from labkit.lessons.scenes import netrooms
from labkit.lessons.scenes.unlocked import Unlocked
from labkit.network import beside_docker, bridge, firewall

pytestmark = [pytest.mark.usefixtures("needs_root"), pytest.mark.requires("bridge", "veth", "nftables NAT")]


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    assert bridge.all_networks() == []
    assert not [entry for entry in ledger.entries() if entry.kind == "plug"]


def links():
    return sorted(name for _, name in socket.if_nameindex())


def tables():
    return subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout


SERVER = ["/usr/bin/python3", "-SEuc", worlds.SERVE, "0.0.0.0", "80"]
LENT = [f"{folder}:{folder}:ro" for folder in ("/usr", "/lib", "/lib64") if os.path.exists(folder)]


def server(**words):
    """Return a started container that says hello once on port 80, and to whom."""
    box = Container("busybox", SERVER, volumes=LENT, **words).start()
    until(lambda: "ready" in box.logs(), 30, "the server")
    return box


# ---- one container ----


def test_a_container_on_a_bridge_has_an_address_and_reaches_the_host():
    def work(world):
        with Container("busybox", "sleep 30", network="bridge").start() as box:
            route = box.exec("ip route").output
            gateway = route.split()[2]
            assert route.startswith(f"default via {gateway} dev eth0")
            assert box.exec(f"ping -c 1 -W 2 {gateway}").code == 0
            record = bridge.record("bridge")
            assert box.record()["address"] == record["users"][box.id]["address"]
            return box.exec(f"cat /etc/hosts").output, box.record()["address"], box.id  # noqa: F541

    hosts, address, number = worlds.inside(work)
    assert f"{address}\t{number}\n" in hosts and "127.0.0.1\tlocalhost\n" in hosts


def test_none_has_only_loopback_and_host_shares_the_hosts():
    assert run("busybox", "ls /sys/class/net", show=False).output == "lo\n"
    inode = run("busybox", "readlink /proc/self/ns/net", network="host", show=False).output.strip()
    assert inode == os.readlink("/proc/self/ns/net")


def test_ipv6_addresses_reach_each_other_where_the_kernel_has_it():
    if not bridge.has_ipv6():
        pytest.skip("IPv6 is switched off here: net.ipv6.conf.default.disable_ipv6")

    def work(world):
        with (
            Container("busybox", "sleep 30", network="bridge", name="six").start(),
            Container("busybox", "sleep 30", network="bridge").start() as other,
        ):
            known = bridge.record("bridge")
            done = other.exec(f"ping -6 -c 1 -W 2 {known['subnet6']}2")
            return done.code, done.output

    code, text = worlds.inside(work)
    assert code == 0, text


# ---- each other ----


def test_containers_on_one_bridge_reach_each_other_by_name():
    def work(world):
        with (
            Container("busybox", "sleep 30", network="bridge", name="first").start() as first,
            Container("busybox", "sleep 30", network="bridge", name="second").start() as second,
        ):
            # The first one's hosts file learns of who came later, and of who goes.
            found = [box.exec(f"ping -c 1 -W 2 {name}").code for box, name in ((first, "second"), (second, "first"))]
            second.delete()
            return found, "second" in first.exec("cat /etc/hosts").output

    assert worlds.inside(work) == ([0, 0], False)


def test_two_bridges_do_not_see_each_other_and_it_is_our_rule_that_parts_them():
    def work(world):
        with (
            Container("busybox", "sleep 30", network="red", name="red1").start() as red,
            Container("busybox", "sleep 30", network="blue", name="blue1").start() as blue,
        ):
            address = blue.record()["address"]
            assert "blue1" not in red.exec("cat /etc/hosts").output
            held = red.exec(f"ping -c 1 -W 1 {address}").code
            for name in ("red", "blue"):
                subprocess.run(["nft", "flush", "chain", "inet", firewall.table(name), "forward"], check=True)
            return held, red.exec(f"ping -c 1 -W 2 {address}").code

    assert worlds.inside(work) == (1, 0)


# ---- the way out, the way in ----


def test_a_container_leaves_with_the_hosts_address():
    def work(world):
        outside = world.outside(worlds.SERVE, worlds.OUTSIDE, 7000)
        assert outside.stdout.readline() == "ready\n"
        with Container("busybox", f"nc {worlds.OUTSIDE} 7000", network="bridge").start() as box:
            box.wait(30)
            outside.communicate(timeout=30)
            return box.logs()

    assert worlds.inside(work) == f"hello {worlds.HOST}"


def _docker_was_here():
    """Set the rules as Docker sets them: the policy, its bridges' isolation left out, and the chain for others."""
    for words in (["-P", "FORWARD", "DROP"], ["-N", "DOCKER-USER"], ["-A", "FORWARD", "-j", "DOCKER-USER"]):
        for command in ("iptables", "ip6tables"):
            subprocess.run([command, "-w", *words], check=True)


def _rules_of_docker():
    return [
        subprocess.run([command, "-w", "-S"], capture_output=True, text=True, check=True).stdout
        for command in ("iptables", "ip6tables")
    ]


def test_beside_docker_whose_rules_drop_the_rest_containers_reach_the_world_and_are_reached():
    def work(world):
        _docker_was_here()
        before = _rules_of_docker()
        with server(network="bridge", publish=["0.0.0.0:8080:80"]) as box:
            found = [
                box.exec(f"ping -c 1 -W 5 {worlds.OUTSIDE}").code,
                world.fetch_from_outside(worlds.HOST, 8080),
                world.fetch_from_outside(box.record()["address"], 80),
            ]
            with Container("busybox", "sleep 30", network="other").start() as stranger:
                found.append(stranger.exec(f"ping -c 1 -W 1 {box.record()['address']}").code)
        return found, before, _rules_of_docker()

    found, before, after = worlds.inside(work)
    assert found == [0, f"hello {worlds.OUTSIDE}", "TimeoutError", 1]
    assert before == after


def test_beside_docker_its_own_bridges_are_not_opened_to_ours():
    def work(world):
        _docker_was_here()
        with Container("busybox", "sleep 30", network="bridge").start():
            device = bridge.record("bridge")["bridge"]
            return device, _rules_of_docker()[0].splitlines()

    device, rules = worlds.inside(work)
    ours = f"-A LABKIT-{device} -i {device}"
    allowed = rules.index(f"{ours} -j ACCEPT")
    for theirs in ("docker+", "br-+"):
        assert rules.index(f"{ours} -o {theirs} -j RETURN") < allowed


def test_beside_docker_a_bridge_is_not_taken_for_one_whose_name_begins_the_same():
    def work(world):
        _docker_was_here()
        before = _rules_of_docker()
        for device in ("lab-long", "lab"):
            beside_docker.let_pass(device)
        jumps = [line for line in _rules_of_docker()[0].splitlines() if line.startswith("-A DOCKER-USER")]
        for device in ("lab-long", "lab"):
            beside_docker.take_back(device)
        return sorted(jumps), before == _rules_of_docker()

    jumps = ["-A DOCKER-USER -j LABKIT-lab", "-A DOCKER-USER -j LABKIT-lab-long"]
    assert worlds.inside(work) == (jumps, True)


def test_without_forwarding_the_host_is_reached_and_the_world_is_not():
    def work(world):
        assert not bridge.can_reach_the_world()
        with Container("busybox", "sleep 30", network="bridge").start() as box:
            found = [box.exec(f"ping -c 1 -W 1 {address}").code for address in (worlds.HOST, worlds.OUTSIDE)]
            assert not bridge.can_reach_the_world(), "the host's own switch was changed"
            return found

    assert worlds.inside(work, forwarding=False) == [0, 1]


def test_a_published_port_is_on_the_hosts_loopback_and_not_outside():
    def work(world):
        with server(network="bridge", publish=["8080:80"]):
            outside = world.fetch_from_outside(worlds.HOST, 8080)
            return outside, worlds.fetch("127.0.0.1", 8080)

    outside, here = worlds.inside(work, forwarding=False)
    assert outside == "ConnectionRefusedError"
    assert here.startswith("hello 10.")


def test_a_port_published_on_every_address_is_reached_from_outside():
    def work(world):
        with server(network="bridge", publish=["0.0.0.0:8080:80"]):
            return world.fetch_from_outside(worlds.HOST, 8080)

    assert worlds.inside(work) == f"hello {worlds.OUTSIDE}"


def test_a_port_published_on_every_address_is_reached_from_a_neighbour_whatever_the_host_passes_on():
    def work(world):
        with (
            server(network="bridge", publish=["0.0.0.0:8080:80"]),
            Container("busybox", "sleep 30", network="bridge").start() as neighbour,
        ):
            return neighbour.exec(f"nc -w 5 {worlds.HOST} 8080").output

    assert worlds.inside(work, forwarding=False).startswith("hello 10.")


def test_from_outside_only_the_published_port_is_reached():
    def work(world):
        with server(network="bridge", publish=["0.0.0.0:8080:80"]) as box:
            return world.fetch_from_outside(box.record()["address"], 80)

    assert worlds.inside(work) == "TimeoutError"


def test_a_container_does_not_reach_the_hosts_loopback():
    """route_localnet, needed for ports on 127.0.0.1, would let in packets for 127.0.0.1 from the bridge."""

    def work(world):
        # A real attacker writes such packets himself, for which CAP_NET_RAW is enough; here the container's kernel does.
        power = {"cap_add": ["NET_ADMIN"], "unlocked": ("read_only",)}
        with Unlocked("busybox", "sleep 30", network="bridge", publish=["8080:80"], **power).start() as box:
            gateway = box.exec("ip route").output.split()[2]
            box.exec(["sh", "-c", f"ip addr del 127.0.0.1/8 dev lo; ip route add 127.0.0.1/32 via {gateway}"])
            box.exec(["sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet"])
            script = "nc -w 2 127.0.0.1 7001"

            def secret():
                door = subprocess.Popen(
                    [sys.executable, "-SEuc", worlds.SERVE, "127.0.0.1", "7001"], stdout=subprocess.PIPE
                )
                door.stdout.readline()
                try:
                    return box.exec(["timeout", "2", "sh", "-c", script]).output
                finally:
                    door.kill()
                    door.wait()

            held = secret()
            subprocess.run(["nft", "flush", "chain", "inet", firewall.table("bridge"), "guard"], check=True)
            return held, secret()

    held, open_ = worlds.inside(work)
    assert "hello" not in held
    assert "hello" in open_, "without the guard it is not reached either: this test proves nothing"


RADVD = """
import socket, struct, sys, time
index = socket.if_nametoindex("eth0")
door = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
door.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
prefix = struct.pack("!BBBBIII16s", 3, 4, 64, 0xC0, 3600, 3600, 0, socket.inet_pton(socket.AF_INET6, "fd66::"))
for _ in range(40):  # an address is tried for a second or two before it may be sent from
    try: door.sendto(struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + prefix, ("ff02::1", 0, 0, index))
    except OSError: pass
    time.sleep(0.1)
"""


def test_a_container_can_not_become_the_hosts_router():
    if not bridge.has_ipv6():
        pytest.skip("IPv6 is switched off here: net.ipv6.conf.default.disable_ipv6")

    def work(world):
        bridge = state.label()
        found = []
        for accept in ("0", "1"):
            with Container("busybox", "sleep 60", network="bridge", volumes=LENT).start() as box:
                switch = f"/proc/sys/net/ipv6/conf/{bridge}/accept_ra"
                with open(switch) as file:
                    found.append(file.read().strip())
                if accept == "1":
                    with open(switch, "w") as file:
                        file.write("2")
                box.exec(["/usr/bin/python3", "-SEc", RADVD])
                routes = subprocess.run(["ip", "-6", "route", "show", "default"], capture_output=True, text=True).stdout
                found.append(bridge in routes)
        return found

    assert worlds.inside(work) == ["0", False, "0", True], "the last: with the switch on it would have worked"


def test_udp_ports_are_published_too():
    def work(world):
        code = "import socket; s = socket.socket(type=2); s.bind(('0.0.0.0', 53)); print('ready', flush=True); m, p = s.recvfrom(9); s.sendto(m.upper(), p)"
        with Container(
            "busybox", [*SERVER[:1], "-SEuc", code], volumes=LENT, network="bridge", publish=["5353:53/udp"]
        ).start() as box:
            until(lambda: "ready" in box.logs(), 30, "the server")
            with socket.socket(type=socket.SOCK_DGRAM) as one:
                one.settimeout(3)
                one.sendto(b"hello", ("127.0.0.1", 5353))
                return one.recv(9)

    assert worlds.inside(work) == b"HELLO"


# ---- given out once, given back ----


def test_a_port_that_is_taken_is_refused_and_nothing_is_left():
    def work(world):
        with Container("busybox", "sleep 30", network="bridge", publish=["8080:80"]).start() as box:
            with pytest.raises(InUse, match="8080"):
                Container("busybox", "true", network="bridge", publish=["8080:81"]).start()
            assert list(bridge.record("bridge")["users"]) == [box.id]
        with socket.create_server(("127.0.0.1", 8081)), pytest.raises(InUse, match="8081"):
            Container("busybox", "true", network="bridge", publish=["8081:80"]).start()
        return links(), tables()

    assert worlds.inside(work) == (["lo", "world"], "")


def test_the_last_user_takes_bridge_and_rules_along():
    def work(world):
        before = links(), tables()
        with Container("busybox", "sleep 30", network="bridge").start() as one:
            with Container("busybox", "sleep 30", network="bridge").start():
                assert len(links()) == 5
            assert state.label() in links() and state.label() in tables()
            one.kill()
            one.wait()
            # It has ended; its files are still there, its cable is not.
            assert (links(), tables()) == before
        return True

    assert worlds.inside(work)


def test_lab_run_leaves_its_bridge_for_the_next_until_clean():
    def work(world):
        def lab_run():
            command = [sys.executable, "-m", "labkit", "run", "--rm", "busybox", "ping", "-c1", "-W1", worlds.OUTSIDE]
            done = subprocess.run(command, capture_output=True, text=True)
            return done.returncode, socket.if_nametoindex(state.label()), state.label() in tables()

        first = lab_run()
        assert lab_run() == first == (0, first[1], True)
        with Container("busybox", "true", network="bridge").start() as box:
            box.wait()
        assert list(bridge.record("bridge")["users"]) == [bridge.LAB]
        subprocess.run(["nft", "flush", "ruleset"], check=True)  # as whoever loads /etc/nftables.conf anew does
        assert lab_run() == first
        subprocess.run(["ip", "link", "delete", state.label()], check=True)
        assert lab_run()[0] == 0
        undone, _, failed = ledger.clean()
        return [*map(str, undone)], failed, links(), tables()

    assert worlds.inside(work) == (["plug lab bridge"], [], ["lo", "world"], "")


def test_a_chapter_leaves_no_bridge(monkeypatch):
    def work(world):
        monkeypatch.setenv("LABKIT_CHAPTER", "10")
        assert ledger.current_scope() == "10"
        command = [sys.executable, "-m", "labkit", "run", "--rm", "busybox", "true"]
        return subprocess.run(command).returncode, [*map(str, ledger.entries())], links()

    assert worlds.inside(work) == (0, [], ["lo", "world"])


def test_many_at_once_get_different_addresses_and_all_come_back():
    def work(world):
        words = [
            sys.executable,
            "-c",
            "import sys; from labkit.network import bridge as network; from labkit.ground import ledger\nwith ledger.group(sys.argv[1]): print(network.join('bridge', sys.argv[1]).address)",
        ]
        with ThreadPoolExecutor(8) as pool:
            numbers = [f"{number:012x}" for number in range(24)]
            addresses = list(
                pool.map(
                    lambda n: subprocess.run([*words, n], capture_output=True, text=True).stdout.strip(),
                    numbers,
                )
            )
        assert len(set(addresses)) == 24 and all(addresses), addresses
        undone, _, failed = ledger.clean()  # their owners are dead
        assert not failed and len([e for e in undone if e.kind == "plug"]) == 24
        return links(), tables()

    assert worlds.inside(work) == (["lo", "world"], "")


def test_a_killed_keeper_leaves_a_plug_that_clean_gives_back():
    def work(world):
        code = (
            "import time; from labkit.container.life import Container\n"
            "box = Container('busybox', 'sleep 60', network='bridge', publish=['8080:80']).start()\n"
            "print('up', flush=True); time.sleep(60)"
        )
        keeper = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert keeper.stdout.readline() == b"up\n"
        assert state.label() in links()
        keeper.send_signal(signal.SIGKILL)
        keeper.wait()
        _, _, failed = ledger.clean()
        return failed, links(), tables()

    assert worlds.inside(work) == ([], ["lo", "world"], "")


def test_a_bridge_left_by_a_crash_is_made_anew():
    def work(world):
        left = bridge.preview("bridge", "nobody").bridge
        subprocess.run(["ip", "link", "add", left, "type", "bridge"], check=True)
        return run("busybox", "ip -4 addr show eth0", network="bridge", show=False).output

    assert "inet 10." in worlds.inside(work)


def test_nobody_elses_rules_and_switches_change():
    def work(world):
        def all_of_it():
            rules = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
            switches = subprocess.run(["sysctl", "-a"], capture_output=True, text=True).stdout.splitlines()
            counts = (
                "_cache",
                "netns",
                "conntrack_count",
                "entropy",
                "inode",
                "dentry",
                "file-nr",
                "ns_last_pid",
                "random",
                "sched",
                "nr_",
                "uuid",
            )
            return rules, [
                line for line in switches if line.startswith("net.") and not any(word in line for word in counts)
            ]

        subprocess.run(
            [
                "nft",
                "add table ip mine; add chain ip mine c { type filter hook forward priority 0; policy accept; }",
            ],
            check=True,
        )
        before = all_of_it()
        with Container("busybox", "true", network="bridge", publish=["8080:80"]).start() as box:
            box.wait()
        return before == all_of_it()

    assert worlds.inside(work)


def test_a_failure_while_plugging_in_leaves_nothing(monkeypatch):
    def work(world):
        real = bridge.tool
        for step in range(4):
            calls = iter(range(100))

            def failing(command, lines, step=step, calls=calls):
                if next(calls) == step:  # bridge made, bridge set up, cable laid, cable set up
                    raise LabError("injected")
                return real(command, lines)

            bridge.tool = failing
            with pytest.raises(LabError):
                Container("busybox", "true", network="bridge").start()
            bridge.tool = real
            assert (links(), tables()) == (["lo", "world"], "")
        return True

    assert worlds.inside(work)


# ---- words ----


@pytest.mark.parametrize(
    "text",
    [
        "80",
        "0:80",
        "80:0",
        "80:70000",
        "a:b",
        "1.2.3:80:80",
        "80:80/sctp",
        "80-82:80",
        "80:80/",
        "::80:80",
        "-1:80",
        "",
        ":",
        "8080:80:",
    ],
)
def test_a_port_that_can_not_be_meant_is_refused(text):
    with pytest.raises(BadValue, match="can't be read"):
        Spec.make("busybox", "true", network="bridge", publish=[text])


def test_ports_in_dockers_words():
    assert bridge.Port.parse("8080:80") == bridge.Port(8080, 80, "tcp", "127.0.0.1")
    assert bridge.Port.parse("0.0.0.0:53:5353/udp") == bridge.Port(53, 5353, "udp", "0.0.0.0")
    spec = Spec.make("busybox", "true", network="bridge", publish=["0.0.0.0:53-54:5353-5354/udp", "80-80:8-8", "1:2"])
    assert [str(port) for port in spec.ports] == [
        "0.0.0.0:53->5353/udp",
        "0.0.0.0:54->5354/udp",
        "127.0.0.1:80->8/tcp",
        "127.0.0.1:1->2/tcp",
    ]


@pytest.mark.parametrize("name", ["a/b", "../x", "a b", "", "x;y", 'x"', "-p"])
def test_a_network_name_that_could_be_more_than_a_name_is_refused(name):
    with pytest.raises(BadValue):
        Spec.make("busybox", "true", network=name)


def test_no_port_without_a_network():
    with pytest.raises(BadValue, match="published"):
        Spec.make("busybox", "true", network="none", publish=["1:1"])
    with pytest.raises(BadValue, match="two lengths"):
        Spec.make("busybox", "true", network="bridge", publish=["80-82:80-81"])


def test_all_addresses_given_out_is_said():
    users = {str(n): {"address": f"10.200.0.{n}", "names": [], "ports": []} for n in range(2, 255)}
    known = {"bridge": "lbfull", "subnet": "10.200.0.0/24", "subnet6": None, "world": False, "users": users}
    file = state.run_dir("networks") / "full.json"
    try:
        state.write_json(file, known)
        with pytest.raises(InUse, match="253 addresses"):
            bridge.preview("full", "one-more")
        del users["77"]
        state.write_json(file, known)
        assert bridge.preview("full", "one-more").address == "10.200.0.77"
    finally:
        file.unlink()


def test_a_subnet_that_the_host_uses_is_not_taken():
    def work(world):
        first = bridge.preview("x", "one").gateway
        subprocess.run(["ip", "route", "add", first, "dev", "world"], check=True)
        return first, bridge.preview("x", "one").gateway

    first, second = worlds.inside(work)
    assert second.startswith("10.") and second != first


def test_name_servers_on_the_hosts_loopback_are_left_out(monkeypatch, tmp_path):
    (tmp_path / "resolv.conf").write_text(
        "search lan\nnameserver 127.0.0.53\nnameserver 192.0.2.1\nnameserver\t127.0.0.1\n"
    )
    real = bridge.Path
    monkeypatch.setattr(
        bridge,
        "Path",
        lambda path: real(tmp_path / "resolv.conf") if path == "/etc/resolv.conf" else real("/none"),
    )
    assert bridge.resolv_conf() == "search lan\nnameserver 192.0.2.1\n"


# ---- where it can't be ----


def test_where_no_bridge_can_be_made_the_container_runs_and_it_is_said():
    command = [sys.executable, "-m", "labkit", "run", "--rm", "busybox", "echo", "runs"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": "/nowhere"})
    assert (done.stdout, done.returncode) == ("runs\n", 0), done.stderr
    assert "no network but the container's own loopback: the command `ip` is not here" in done.stderr


def test_where_the_kernel_refuses_the_bridge_nothing_of_it_is_left(monkeypatch, capsys):
    def refuse(command, lines):
        raise LabError("injected")

    monkeypatch.setattr(bridge, "tool", refuse)
    with Container("busybox", "true", network="auto").start() as box:
        assert bridge.all_networks() == [] and box.wait(30) == 0
    assert "injected" in capsys.readouterr().err


def test_where_no_bridge_can_be_made_asking_for_one_fails():
    code = (
        "import os, sys; from labkit.isolation import security\n"
        "security.limit_bounding_set(set(security.CAPABILITIES) - {'NET_ADMIN'})\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'labkit', 'run', '--network', 'bridge', 'busybox', 'true'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 125 and "CAP_NET_ADMIN" in done.stderr


def test_without_its_tool_the_network_says_which_package(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "nft" else name)
    with pytest.raises(Unsupported, match="nft") as caught:
        bridge.join("bridge", "0" * 12)
    assert "apt-get install nftables" in str(caught.value)


def test_the_record_is_plain_json():
    def work(world):
        with Container("busybox", "sleep 9", network="bridge", name="x", publish=["8080:80"]).start():
            return (state.run_dir("networks") / "bridge.json").read_text()

    assert json.loads(worlds.inside(work))["users"]


# ---- the exercises of chapter 10 ----


@pytest.fixture
def rooms():
    opened = [netrooms.open_room(name) for name in "abcd"]
    yield opened
    netrooms.close_all()
    assert not [entry for entry in ledger.entries() if entry.kind == "process"]


def cable(one, other, first="10.1.0.1/24", second="10.1.0.2/24", name="cable", up=True):
    one.ip(f"link add {name} type veth peer name {name} netns {other.pid}")
    for room, address in ((one, first), (other, second)):
        if address:
            room.ip(f"address add {address} dev {name}")
        room.ip(f"link set {name} {'up' if up else 'down'}")


def test_a_cable_between_two_rooms_is_right(rooms):
    cable(*rooms[:2])
    assert check.cabled(*rooms[:2])


@pytest.mark.parametrize(
    "wrong, missing",
    [
        (lambda a, b: None, "an end of a veth pair"),
        (lambda a, b: [room.ip("link add cable type veth peer name other") for room in (a, b)], "one cable"),
        (lambda a, b: cable(a, b, second=None), "an address"),
        (lambda a, b: cable(a, b, up=False), "switched on"),
        (lambda a, b: cable(a, b, second="10.9.0.2/24"), "a ping"),
    ],
)
def test_a_wrong_cable_is_told_what_is_missing(rooms, wrong, missing):
    wrong(*rooms[:2])
    result = check.cabled(*rooms[:2])
    assert not result and missing in result.missing, result


def _switch(switch, rooms, address="10.2.0.{}/24", master=True, up=True):
    switch.ip("link add br0 type bridge")
    switch.ip("link set br0 up")
    for number, room in enumerate(rooms, 1):
        switch.ip(f"link add to{number} type veth peer name eth0 netns {room.pid}")
        switch.ip(
            f"link set to{number} {'master br0' if master else ''} {'up' if up else ''}"
        ) if master or up else None
        room.ip(f"address add {address.format(number)} dev eth0")
        room.ip("link set eth0 up")


def test_a_switch_for_three_is_right(rooms):
    switch, *others = rooms
    _switch(switch, others)
    assert check.switched(switch, *others)


@pytest.mark.parametrize(
    "wrong, missing",
    [
        (lambda switch, rooms: None, "a bridge"),
        (lambda switch, rooms: _switch(switch, rooms, master=False), "3 cables"),
        (lambda switch, rooms: _switch(switch, rooms, up=False), "switched on"),
        (lambda switch, rooms: _switch(switch, rooms, address="10.{}.0.1/24"), "everybody reaches"),
    ],
)
def test_a_wrong_switch_is_told_what_is_missing(rooms, wrong, missing):
    switch, *others = rooms
    wrong(switch, others)
    result = check.switched(switch, *others)
    assert not result and missing in result.missing, result


@pytest.mark.parametrize(
    "networks, missing",
    [
        (("red", "red", "blue"), None),
        (("red", "red", "red"), "the third"),
        (("red", "blue", "green"), "the first and"),
        (("red", "red", "none"), "an address"),
    ],
)
def test_three_containers_apart(networks, missing):
    def work(world):
        with contextlib.ExitStack() as stack:
            boxes = [stack.enter_context(Container("busybox", "sleep 60", network=name).start()) for name in networks]
            return check.apart(*boxes).missing

    found = worlds.inside(work)
    assert found is None if missing is None else missing in found


def test_a_frame_that_is_cut_short_or_nonsense_does_not_break_the_listener(rooms):
    cable(*rooms[:2])
    with netrooms.listening(rooms[0], "cable") as seen:
        code = (
            "import socket; s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind(('cable', 0))\n"
            "for kind in (b'\\x08\\x00', b'\\x08\\x06', b'\\xff\\xff'): s.send(b'\\xff' * 12 + kind + b'\\x4f')"
        )
        rooms[1].run([sys.executable, "-SEc", code])
        assert rooms[0].reaches("10.1.0.2")
    assert any("echo reply" in packet.what for packet in seen.packets)
