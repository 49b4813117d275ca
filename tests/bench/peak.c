/* peak FD COMMAND…: run a command; write "nanoseconds, peak memory in kB, status" to FD.
 *
 * A process that starts another by fork gives it its own peak: what is measured must be
 * forked from something small, as this is. See ru_maxrss in getrusage(2).
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

int main(int count, char **words)
{
    if (count < 3) { fprintf(stderr, "peak FD COMMAND…\n"); return 2; }
    struct timespec from, to;
    struct rusage used;
    int status, out = atoi(words[1]);
    clock_gettime(CLOCK_MONOTONIC, &from);
    pid_t pid = fork();
    if (pid == 0) {
        close(out);
        execvp(words[2], words + 2);
        perror(words[2]);
        _exit(127);
    }
    if (pid < 0 || wait4(pid, &status, 0, &used) < 0) { perror("peak"); return 1; }
    clock_gettime(CLOCK_MONOTONIC, &to);
    dprintf(out, "%lld %ld %d\n", (to.tv_sec - from.tv_sec) * 1000000000LL + to.tv_nsec - from.tv_nsec,
            used.ru_maxrss, WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
    return 0;
}
