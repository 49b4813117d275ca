#!/bin/sh
# provision.sh: make a Debian or Ubuntu virtual machine the lab's. Vagrant runs it
# as root at every `vagrant up`; what is done already is not done again, and what
# broke off goes on. LAB_TOKEN is the token that JupyterLab is to ask for.
set -eu

say() { echo "lab: $*"; }
fail() {
    echo "lab: $1
  → $2" >&2
    exit 1
}

# ---- is it a guest that can do it? ------------------------------------------

# shellcheck disable=SC1091
. /etc/os-release
command -v apt-get >/dev/null || fail \
    "this box is $PRETTY_NAME, and the lab is made for Debian 13, Debian 12 and Ubuntu 24.04 or newer" \
    "leave LAB_BOX unset, vagrant destroy, vagrant up"
case $(uname -r) in [1-4].* | 5.[0-9].* | 5.1[0-3].*) fail \
    "this box's kernel is Linux $(uname -r), and the chapters need 5.14 or newer" \
    "leave LAB_BOX unset, vagrant destroy, vagrant up" ;;
esac
if command -v python3 >/dev/null && ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    fail "this box is too old ($PRETTY_NAME): its $(python3 --version) is, and the lab needs 3.11 or newer" \
        "leave LAB_BOX unset, vagrant destroy, vagrant up"
fi
for controller in cpu memory io pids cpuset; do
    grep -qw "$controller" /sys/fs/cgroup/cgroup.controllers 2>/dev/null || fail \
        "this box's cgroup v2 tree has no $controller controller" \
        "take systemd.unified_cgroup_hierarchy=0 and cgroup_disable= from its kernel's command line, then vagrant reload"
done

# ---- the lab, and Docker for the comparisons ----------------------------------

export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
# A new machine may be busy updating itself.
lock="-o DPkg::Lock::Timeout=600"

if ! command -v docker >/dev/null; then
    say "Docker, from Debian's packages"
    dpkg --configure -a
    apt-get update -q || say "the package lists could not be renewed, trying the old ones"
    # Debian 13 has the client in a package of its own. Without it this would be done anew at each `vagrant up`.
    client=$(apt-cache show docker-cli >/dev/null 2>&1 && echo docker-cli) || client=
    # shellcheck disable=SC2086
    apt-get install -qy --no-install-recommends $lock docker.io $client iptables apparmor ca-certificates || fail \
        "Docker could not be installed" \
        "check that this machine reaches Debian's packages; \`vagrant up\` then goes on from here"
fi

# Python's compiled files stay in the machine: the shared folder is slow, and not ours.
cat >/usr/local/bin/lab <<'END'
#!/bin/sh
# lab: the command of the shared folder, as root.
[ "$(id -u)" = 0 ] || exec sudo "$0" "$@"
export PYTHONPYCACHEPREFIX=/var/cache/docker-deep-dive/compiled
exec sh /vagrant/vagrant/lab "$@"
END
chmod 755 /usr/local/bin/lab
lab help >/dev/null || fail "the lab's packages are not all in place" \
    "check that this machine reaches Debian's packages and the Python package index; \`vagrant up\` then goes on from here"

cat >/etc/motd <<'END'

  Docker Deep Dive, the lab. The chapters are in /vagrant/notebooks.
  lab doctor   what this machine has       lab run -it busybox sh   a container
  lab help     all commands                lab test                 all tests

END

# ---- JupyterLab as a service ---------------------------------------------------

# write FILE: from stdin; succeeds if that changed it.
write() {
    cat >"$1.new"
    if cmp -s "$1.new" "$1"; then
        rm "$1.new"
        return 1
    fi
    mv "$1.new" "$1"
}

changed=
umask 077
echo "LAB_TOKEN=$LAB_TOKEN" | write /etc/docker-deep-dive.env && changed=yes
umask 022
# Delegate: the cgroups below the service are the lab's own, systemd keeps out of them.
# The condition: some providers mount the folder only after the boot.
write /etc/systemd/system/docker-deep-dive.service <<'END' && changed=yes
[Unit]
Description=Docker Deep Dive, the lab: JupyterLab with the chapters
After=network.target
StartLimitIntervalSec=1h
StartLimitBurst=3
ConditionPathExists=/vagrant/vagrant/lab
[Service]
EnvironmentFile=/etc/docker-deep-dive.env
ExecStart=/usr/local/bin/lab up --ip 0.0.0.0
Delegate=yes
KillMode=mixed
Restart=on-failure
RestartSec=5
[Install]
WantedBy=multi-user.target
END
if [ -n "$changed" ]; then
    systemctl daemon-reload
    systemctl -q enable docker-deep-dive
    systemctl stop docker-deep-dive
fi
systemctl reset-failed docker-deep-dive 2>/dev/null || true
systemctl start docker-deep-dive
say "everything is in place"
