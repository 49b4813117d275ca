"""Pull and push against a real registry on this machine's loopback."""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request

import pytest
from tars import entry, folder, tar
from trees import differences, snapshot

from labkit.ground import ledger, state
from labkit.ground.errors import BadValue, LabError, NotFound
from labkit.images import catalog, digests, registry
from labkit.storage import garbage
from tests.images.test_images import add_image
from tests.images.test_store_crash import assert_sound, kill_in_the_middle, moments

pytestmark = pytest.mark.usefixtures("needs_root")


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """A registry of this module's own; yields its host:port."""
    if not shutil.which("docker-registry") or not shutil.which("skopeo"):
        pytest.skip("apt-get install docker-registry skopeo")
    place = tmp_path_factory.mktemp("registry")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (place / "config.yml").write_text(f"""\
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {place}/data}}}}
http: {{addr: "127.0.0.1:{port}"}}
""")
    process = subprocess.Popen(["docker-registry", "serve", place / "config.yml"], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/", timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, "the registry does not answer"
                time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def second(tmp_path, monkeypatch):
    """Change to another, empty store."""
    return lambda name="second": monkeypatch.setenv("LABKIT_ROOT", str(tmp_path / name))


def test_pushed_image_is_the_same_when_it_is_pulled(host, second):
    second("first")
    before = catalog.get("busybox")
    pushed = registry.push("busybox", f"{host}/box:1")
    second()
    after = registry.pull(f"{host}/box:1")
    assert (after.name, after.diff_ids) == (f"{host}/box:1", before.diff_ids)
    assert pushed == after.digest == served(f"{host}/box:1")
    assert differences(snapshot(before.layers[0]), snapshot(after.layers[0])) == []
    assert ledger.entries() == []


def served(name):
    """Return the digest of the manifest that the registry serves, computed from the bytes themselves."""
    host, _, path = name.partition("/")
    repository, _, tag = path.partition(":")
    request = urllib.request.Request(
        f"http://{host}/v2/{repository}/manifests/{tag}",
        headers={"Accept": "application/vnd.oci.image.manifest.v1+json"},
    )
    with urllib.request.urlopen(request) as answer:
        return digests.digest(answer.read())


def test_digest_that_push_returns_is_the_one_the_registry_serves(host, second):
    """A plain layer is sent as gzip: the manifest there is another than ours. A gzip layer stays as it is."""
    second("first")
    add_image(catalog.store(), f"{host}/plain:1", tar(folder("."), entry("f", data=b"x" * 50_000)))
    pushed = registry.push(f"{host}/plain:1")
    assert pushed == served(f"{host}/plain:1") != catalog.find(f"{host}/plain:1")[1]
    second()
    packed = registry.pull(f"{host}/plain:1")
    assert packed.digest == pushed
    assert registry.push(packed.name, f"{host}/packed:1") == served(f"{host}/packed:1") == pushed


def test_layers_that_are_here_are_not_fetched_again(host, second):
    second("first")
    shared = tar(folder("."), entry("shared", data=os.urandom(500_000)))
    for name in ("a", "b"):
        add_image(catalog.store(), f"{host}/{name}:1", shared, tar(folder("."), entry(name, data=name.encode())))
        registry.push(f"{host}/{name}:1")
    second()
    a = registry.pull(f"{host}/a:1")
    blob = catalog.store().path(catalog.read(catalog.store(), a.digest)[0]["layers"][0]["digest"])
    written = blob.stat().st_mtime_ns
    seen = []
    b = registry.pull(f"{host}/b:1", progress=lambda done, total: seen.append((done, total)))
    assert a.layers[0] == b.layers[0] and blob.stat().st_mtime_ns == written
    assert seen[-1][0] == seen[-1][1] > 0


def test_progress_grows_to_the_whole(host, second):
    second("first")
    add_image(catalog.store(), f"{host}/big:1", tar(folder("."), entry("big", data=os.urandom(30 << 20))))
    registry.push(f"{host}/big:1")
    second()
    seen = []
    registry.pull(f"{host}/big:1", progress=lambda done, total: seen.append((done, total)))
    parts = [done for done, _ in seen]
    assert parts == sorted(parts) and len({total for _, total in seen}) == 1 and seen[-1][0] == seen[-1][1]


def test_registry_says_what_it_has_not(host, second):
    second()
    with pytest.raises(NotFound, match="pulling"):
        registry.pull(f"{host}/nope:1")
    assert catalog.store().names() == {} and ledger.entries() == []


def test_registry_that_is_not_there_is_told(second):
    second()
    with pytest.raises(LabError, match="connection refused"):
        registry.pull("127.0.0.1:1/x")


@pytest.mark.parametrize("name", ["--help", "-x", "a b", "", "http://x/y", "$(reboot)", "a;b"])
def test_name_is_never_an_option_or_a_command(name, second):
    second()
    with pytest.raises(BadValue):
        registry.pull(name)


def test_layer_that_was_exchanged_in_the_registry_is_refused(host, second, tmp_path_factory):
    """The registry serves other bytes under the digest that the manifest promises."""
    second("first")
    data = tar(folder("."), entry("mine", data=os.urandom(3000)))
    add_image(catalog.store(), f"{host}/evil:1", data)
    registry.push(f"{host}/evil:1")
    request = urllib.request.Request(
        f"http://{host}/v2/evil/manifests/1", headers={"Accept": "application/vnd.oci.image.manifest.v1+json"}
    )
    stored = json.load(urllib.request.urlopen(request))["layers"][0]["digest"]
    (blob,) = tmp_path_factory.getbasetemp().rglob(f"{digests.hex_of(stored)}/data")
    damaged = bytearray(blob.read_bytes())
    damaged[-10] ^= 1
    blob.write_bytes(damaged)
    second()
    with pytest.raises(LabError):
        registry.pull(f"{host}/evil:1")
    assert catalog.store().names() == {} and ledger.entries() == []
    assert not catalog.store().has(stored)


@pytest.mark.slow
def test_pull_killed_at_20_moments_leaves_a_sound_store(host, second):
    second("first")
    files = (entry(f"f{number}", data=os.urandom(20_000)) for number in range(600))
    layers = [tar(folder("."), *files), tar(folder("."), entry("big", data=os.urandom(12 << 20)))]
    add_image(catalog.store(), f"{host}/slow:1", *layers)
    registry.push(f"{host}/slow:1")
    second()
    work = f"registry.pull('{host}/slow:1')"
    when, killed, fetching, unpacking = moments(work, 20), 0, 0, 0
    garbage.remove(f"{host}/slow:1")
    for after in when:
        killed += kill_in_the_middle(work, after)
        fetching += any(state.lib_dir("images").rglob("oci-put-blob*"))
        unpacking += any(state.lib_dir("layers").rglob("*.tmp"))
        assert_sound()
        if catalog.store().names():
            garbage.remove(f"{host}/slow:1")
        garbage.collect()
    assert killed >= 12 and fetching >= 1 and unpacking >= 3, (killed, fetching, unpacking)
    assert registry.pull(f"{host}/slow:1").layers
    assert_sound()
