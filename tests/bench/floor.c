/* What the syscalls alone cost: one container, start to exit, in C, and nothing else.
 *
 *   floor LOWERDIR SCRATCH NAME BASES FILTER COMMAND…
 *
 * The same steps as labkit's default container in the same order: cgroup folders
 * with three limits, clone3, overlay root, the standard mounts, masks, pivot_root,
 * capabilities, no_new_privs, the seccomp filter in the file FILTER, exec; then wait
 * and remove. It checks every call and explains none: it is a yardstick, not a runtime.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/mount.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define MNT_DETACH_ 2

static void die(const char *what) { fprintf(stderr, "floor: %s: %s\n", what, strerror(errno)); exit(1); }
static long ok(long result, const char *what) { if (result < 0) die(what); return result; }
static long try_(long result, const char *what)
{
    if (result < 0 && errno != ENOENT) die(what);
    return result;
}

static const char *TREES[] = {"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "unified", ""};

static int put(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    int result = write(fd, text, strlen(text)) < 0 ? -1 : 0;
    close(fd);
    return result;
}

static char folders[16][512];
static int folder_count;

/* BASES: a file with one line a tree, the folder that labkit makes its own in. It exists. */
static void make_cgroups(const char *name, const char *bases)
{
    const char *limits[][2] = {{"memory.limit_in_bytes", "67108864"}, {"memory.max", "67108864"},
        {"cpu.cfs_quota_us", "100000"}, {"cpu.max", "100000 100000"}, {"pids.max", "50"}};
    const char *sets[] = {"cpuset.cpus", "cpuset.mems"};
    char line[512], path[1024], text[256];
    FILE *file = fopen(bases, "re");
    if (!file) die(bases);
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        char *folder = folders[folder_count++];
        snprintf(folder, 512, "%s/%s", line, name);
        ok(mkdir(folder, 0755), folder);
        for (int i = 0; i < 2 && strstr(line, "/cpuset/"); i++) {
            snprintf(path, sizeof path, "%s/%s", line, sets[i]);
            int fd = ok(open(path, O_RDONLY | O_CLOEXEC), path);
            ssize_t size = ok(read(fd, text, sizeof text - 1), path);
            close(fd);
            text[size] = 0;
            snprintf(path, sizeof path, "%s/%s", folder, sets[i]);
            put(path, text);
        }
        for (unsigned i = 0; i < sizeof limits / sizeof *limits; i++) {
            snprintf(path, sizeof path, "%s/%s", folder, limits[i][0]);
            put(path, limits[i][1]);
        }
    }
    fclose(file);
}

static int new_fs(const char *kind, const char *options[][2], unsigned attrs)
{
    int context = ok(syscall(SYS_fsopen, kind, FSOPEN_CLOEXEC), kind);
    for (int i = 0; options && options[i][0]; i++)
        ok(syscall(SYS_fsconfig, context, options[i][1] ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG, options[i][0], options[i][1], 0), options[i][0]);
    ok(syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0), kind);
    int mount = ok(syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, attrs), kind);
    close(context);
    return mount;
}

static int root;
static int in_root(const char *path, int make)
{
    struct { unsigned long long flags, mode, resolve; } how = {O_PATH | O_CLOEXEC, 0, 0x10 | 0x04 | 0x02};
    int fd = syscall(SYS_openat2, root, path + 1, &how, sizeof how);
    if (fd < 0 && make) {
        if (make == 1) mkdirat(root, path + 1, 0755);
        else close(openat(root, path + 1, O_CREAT | O_WRONLY, 0644));
        fd = syscall(SYS_openat2, root, path + 1, &how, sizeof how);
    }
    return fd;
}
static void place(int mount, const char *target, int make)
{
    int fd = ok(in_root(target, make), target);
    ok(syscall(SYS_move_mount, mount, "", fd, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH), target);
    close(fd);
    close(mount);
}
static int tree(int dir, const char *path, unsigned long long attrs)
{
    int flags = OPEN_TREE_CLONE | O_CLOEXEC | 0x8000 | (*path ? 0 : 0x1000);
    int fd = ok(syscall(SYS_open_tree, dir, path, flags), path);
    struct { unsigned long long set, clear, propagation, userns; } attr = {attrs, 0, 1 << 18, 0};
    ok(syscall(SYS_mount_setattr, fd, "", 0x1000 | 0x8000, &attr, sizeof attr), path);
    return fd;
}

#define RO 1u
#define NS 2u
#define ND 4u
#define NX 8u

static void mounts(const char *lower, const char *scratch)
{
    char upper[512], work[512], merged[512];
    snprintf(upper, 512, "%s/diff", scratch);
    snprintf(work, 512, "%s/work", scratch);
    snprintf(merged, 512, "%s/merged", scratch);
    ok(syscall(SYS_mount, NULL, "/", NULL, 16384 | (1 << 18), NULL), "private");
    const char *overlay[][2] = {{"source", "overlay"}, {"lowerdir+", lower}, {"upperdir", upper}, {"workdir", work},
        {"metacopy", "off"}, {"redirect_dir", "off"}, {"index", "off"}, {0}};
    int mount = new_fs("overlay", overlay, ND);
    ok(syscall(SYS_move_mount, mount, "", AT_FDCWD, merged, MOVE_MOUNT_F_EMPTY_PATH), merged);
    close(mount);
    root = ok(open(merged, O_PATH | O_DIRECTORY | O_CLOEXEC), merged);
    const char *dev[][2] = {{"mode", "755"}, {"size", "65536k"}, {0}}, *shm[][2] = {{"mode", "1777"}, {"size", "65536k"}, {0}};
    const char *pts[][2] = {{"newinstance", 0}, {"ptmxmode", "0666"}, {"mode", "0620"}, {"gid", "5"}, {0}}, *cg[][2] = {{"mode", "755"}, {0}};
    place(new_fs("proc", NULL, NS | ND | NX), "/proc", 1);
    place(new_fs("tmpfs", dev, NS | ND), "/dev", 1);
    place(new_fs("sysfs", NULL, RO | NS | ND | NX), "/sys", 1);
    place(new_fs("devpts", pts, NS | NX), "/dev/pts", 1);
    place(new_fs("tmpfs", shm, NS | ND | NX), "/dev/shm", 1);
    place(new_fs("mqueue", NULL, NS | ND | NX), "/dev/mqueue", 1);
    const char *devices[] = {"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"};
    for (int i = 0; i < 6; i++) place(tree(AT_FDCWD, devices[i], 0), devices[i], 2);
    const char *links[][2] = {{"pts/ptmx", "dev/ptmx"}, {"/proc/self/fd", "dev/fd"}, {"/proc/self/fd/0", "dev/stdin"},
        {"/proc/self/fd/1", "dev/stdout"}, {"/proc/self/fd/2", "dev/stderr"}};
    for (int i = 0; i < 5; i++) ok(symlinkat(links[i][0], root, links[i][1]), links[i][1]);
    struct stat status;
    if (stat("/sys/fs/cgroup/cgroup.controllers", &status) == 0)
        place(new_fs("cgroup2", NULL, RO | NS | ND | NX), "/sys/fs/cgroup", 1);
    else {
        place(new_fs("tmpfs", cg, NS | ND | NX), "/sys/fs/cgroup", 1);
        for (int i = 0; *TREES[i]; i++) {
            char path[64];
            snprintf(path, 64, "/sys/fs/cgroup/%s", TREES[i]);
            const char *one[][2] = {{TREES[i], 0}, {0}};
            if (stat(path, &status) < 0) continue;
            place(strcmp(TREES[i], "unified") ? new_fs("cgroup", one, RO | NS | ND | NX) : new_fs("cgroup2", NULL, RO | NS | ND | NX), path, 1);
        }
    }
    const char *masked[] = {"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
        "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"};
    const char *none[][2] = {{"size", "0"}, {0}};
    for (unsigned i = 0; i < sizeof masked / sizeof *masked; i++) {
        int fd = try_(in_root(masked[i], 0), masked[i]);
        if (fd < 0) continue;
        fstat(fd, &status);
        int cover = S_ISDIR(status.st_mode) ? new_fs("tmpfs", none, RO | NS | ND | NX) : tree(AT_FDCWD, "/dev/null", 0);
        ok(syscall(SYS_move_mount, cover, "", fd, "", 4 | 0x40), masked[i]);
        close(cover);
        close(fd);
    }
    const char *sealed[] = {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"};
    for (int i = 0; i < 5; i++) {
        int fd = try_(in_root(sealed[i], 0), sealed[i]);
        if (fd < 0) continue;
        int cover = tree(fd, "", RO);
        ok(syscall(SYS_move_mount, cover, "", fd, "", 4 | 0x40), sealed[i]);
        close(cover);
        close(fd);
    }
    int old = ok(open("/", O_PATH | O_DIRECTORY | O_CLOEXEC), "/");
    ok(fchdir(root), "fchdir");
    ok(syscall(SYS_pivot_root, ".", "."), "pivot_root");
    ok(fchdir(old), "fchdir");
    ok(syscall(SYS_umount2, ".", MNT_DETACH_), "umount2");
    ok(chdir("/"), "chdir");
}

static void power(const char *filter, size_t size)
{
    unsigned long long keep = 0xa80425fb;
    for (int i = 0; prctl(PR_CAPBSET_READ, i, 0, 0, 0) >= 0; i++)
        if (!(keep >> i & 1)) ok(prctl(PR_CAPBSET_DROP, i, 0, 0, 0), "capbset");
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {{keep, keep, 0}, {keep >> 32, keep >> 32, 0}};
    ok(syscall(SYS_capset, &header, data), "capset");
    ok(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
    if (size) {
        struct sock_fprog program = {size / sizeof(struct sock_filter), (struct sock_filter *)filter};
        ok(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0), "seccomp");
    }
}

int main(int count, char **words)
{
    if (count < 7) { fprintf(stderr, "floor LOWERDIR SCRATCH NAME BASES FILTER COMMAND…\n"); return 2; }
    char path[1024];
    static char filter[1 << 20];
    ssize_t size = 0;
    int fd = open(words[5], O_RDONLY | O_CLOEXEC);
    if (fd >= 0) { size = read(fd, filter, sizeof filter); close(fd); }
    ok(mkdir(words[2], 0700), words[2]);
    const char *parts[] = {"diff", "work", "merged"};
    for (int i = 0; i < 3; i++) { snprintf(path, 1024, "%s/%s", words[2], parts[i]); ok(mkdir(path, 0755), path); }
    make_cgroups(words[3], words[4]);
    int go[2];
    ok(pipe2(go, O_CLOEXEC), "pipe");
    struct clone_args args = {.flags = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET, .exit_signal = SIGCHLD};
    /* As labkit's: born in the v2 folder; into v1's by its own hand, for a move by number waits for all forks on the machine. */
    struct stat is_v1;
    for (int i = 0; i < folder_count; i++) {
        snprintf(path, 1024, "%s/tasks", folders[i]);
        if (stat(path, &is_v1) < 0) {
            args.flags |= CLONE_INTO_CGROUP;
            args.cgroup = ok(open(folders[i], O_PATH | O_DIRECTORY | O_CLOEXEC), folders[i]);
        }
    }
    pid_t pid = ok(syscall(SYS_clone3, &args, sizeof args), "clone3");
    if (pid == 0) {
        char byte;
        if (read(go[0], &byte, 1) != 1) _exit(1);
        for (int i = 0; i < folder_count; i++) {
            snprintf(path, 1024, "%s/tasks", folders[i]);
            put(path, "0");
        }
        setsid();
        ok(unshare(CLONE_NEWCGROUP), "unshare");
        ok(sethostname(words[3], strlen(words[3])), "sethostname");
        int door = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_LOOPBACK};
        ok(ioctl(door, SIOCSIFFLAGS, &request), "lo");
        mounts(words[1], words[2]);
        power(filter, size);
        char *env[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", NULL};
        execvpe(words[6], words + 6, env);
        die(words[6]);
    }
    ok(write(go[1], "g", 1), "go");
    int status;
    ok(waitpid(pid, &status, 0), "waitpid");
    for (int i = 0; i < folder_count; i++)
        for (int tries = 0; rmdir(folders[i]) < 0 && tries < 2000; tries++) usleep(500);
    snprintf(path, 1024, "%s/work/work", words[2]); rmdir(path);
    for (int i = 0; i < 3; i++) {
        /* diff holds what the mounts needed: /proc, /dev, /sys made in it, all empty */
        snprintf(path, 1024, "%s/%s", words[2], parts[i]);
        DIR *dir = opendir(path);
        for (struct dirent *entry; dir && (entry = readdir(dir));) unlinkat(dirfd(dir), entry->d_name, AT_REMOVEDIR);
        if (dir) closedir(dir);
        rmdir(path);
    }
    rmdir(words[2]);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
