/* What a hostile payload tries. One line for each trick: its name and the errno that stopped it, or 0 if nothing did.
 *
 *     tricks JOBOUTPUTS FORBIDDEN...    paths of this host that no machine may open come last
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/klog.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MOST 3000

static void tell(const char *name, long result) {
    printf("%s %d\n", name, result < 0 ? errno : 0);
    fflush(stdout);
}

static long open_at(const char *path, int flags) {
    long descriptor = open(path, flags | O_CLOEXEC | O_NONBLOCK);
    if (descriptor >= 0)
        close(descriptor);
    return descriptor;
}

/* In a child, since it may have other namespaces then. */
static void apart(const char *name, int flag) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        tell(name, unshare(flag));
        _exit(0);
    }
    waitpid(child, NULL, 0);
}

/* A setuid program in joboutputs. */
static void leave_setuid(const char *directory) {
    char path[4096], piece[65536];
    ssize_t length;
    snprintf(path, sizeof path, "%s/rooted", directory);
    int from = open("/proc/self/exe", O_RDONLY), to = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0755);
    while ((length = read(from, piece, sizeof piece)) > 0)
        if (write(to, piece, length) != length)
            break;
    close(to);
    tell("setuid", chmod(path, 06755));
}

/* A device node of the disk with number 254:0 or 8:0, and what can be done with it. */
static void make_device(const char *directory) {
    char path[4096];
    dev_t numbers[] = {makedev(254, 0), makedev(8, 0), makedev(1, 1)};
    long result = -1;
    for (int i = 0; i < 3 && result < 0; i++) {
        snprintf(path, sizeof path, "%s/device%d", directory, i);
        result = mknod(path, (i == 2 ? S_IFCHR : S_IFBLK) | 0666, numbers[i]);
        if (result == 0)
            result = open_at(path, O_RDWR);
    }
    tell("devices", result);
}

static void count(const char *name, long number) {
    printf("%s=%ld\n", name, number);
    fflush(stdout);
}

/* Processes, each of which waits until all are ended. */
static void count_forks(void) {
    long number = 0;
    static pid_t children[MOST];
    while (number < MOST && (children[number] = fork()) > 0)
        number++;
    if (number < MOST && children[number] == 0) {
        pause();
        _exit(0);
    }
    for (long i = 0; i < number; i++)
        kill(children[i], SIGKILL);
    for (long i = 0; i < number; i++)
        waitpid(children[i], NULL, 0);
    count("forks", number);
}

static void count_user_namespaces(void) {
    long number = 0;
    fflush(stdout);
    if (fork() == 0) {
        struct rlimit many = {1 << 20, 1 << 20};
        setrlimit(RLIMIT_NOFILE, &many);
        while (number < MOST) {
            int ends[2];
            char done = 0;
            if (pipe(ends) != 0)
                break;
            pid_t child = fork();
            if (child < 0)
                break;
            if (child == 0) {
                done = unshare(CLONE_NEWUSER) == 0 ? 'y' : 'n';
                if (write(ends[1], &done, 1) == 1 && done == 'y')
                    pause();
                _exit(0);
            }
            if (read(ends[0], &done, 1) != 1 || done != 'y')
                break;
            char path[64];
            snprintf(path, sizeof path, "/proc/%d/ns/user", child);
            if (open(path, O_RDONLY) < 0) /* it holds the name space without a process */
                break;
            kill(child, SIGKILL);
            waitpid(child, NULL, 0);
            close(ends[0]);
            close(ends[1]);
            number++;
        }
        count("user_namespaces", number);
        _exit(0);
    }
    wait(NULL);
}

/* Processes that aren't this machine's own, as far as /proc shows any; its own are few. */
static void count_processes(void) {
    long number = 0;
    DIR *proc = opendir("/proc");
    struct dirent *entry;
    while (proc != NULL && (entry = readdir(proc)) != NULL)
        number += entry->d_name[0] >= '1' && entry->d_name[0] <= '9';
    count("processes", number);
}

static long connect_to(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    int descriptor = socket(AF_UNIX, SOCK_STREAM, 0);
    long result = connect(descriptor, (struct sockaddr *)&address, sizeof address);
    close(descriptor);
    return result;
}

int main(int argc, char **argv) {
    static const char *settings[] = {"/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/sys/vm/swappiness",
                                     "/sys/kernel/uevent_helper", "/sys/fs/cgroup/memory/release_agent",
                                     "/sys/fs/cgroup/cgroup.procs", "/sys/power/state"};
    static const char *sockets[] = {"/run/docker.sock", "/var/run/docker.sock", "/run/dbus/system_bus_socket",
                                    "/run/libvirt/libvirt-sock", "/run/systemd/private"};
    static const char *devices[] = {"/dev/mem", "/dev/kmem", "/dev/vda", "/dev/sda", "/dev/kvm", "/dev/loop-control"};
    const char *outputs = argv[1];
    struct timespec now = {0, 0};
    struct sched_param first = {1};
    struct perf_event_attr event = {.size = sizeof event, .type = PERF_TYPE_SOFTWARE};

    leave_setuid(outputs);
    tell("session_key", syscall(SYS_request_key, "user", "vac-secret", NULL, -3));
    tell("keys", syscall(SYS_keyctl, 0, -4, 1));
    tell("bpf", syscall(SYS_bpf, 0, NULL, 0));
    char parameters[120] = {0};
    tell("io_uring", syscall(SYS_io_uring_setup, 1, parameters));
    tell("userfaultfd", syscall(SYS_userfaultfd, 1));
    tell("perf_event_open", syscall(SYS_perf_event_open, &event, -1, 0, -1, 0));
    tell("vsock", socket(40, SOCK_STREAM, 0));
    tell("kernel_modules", syscall(SYS_init_module, NULL, 0, ""));
    tell("kexec", syscall(SYS_kexec_load, 0, 0, NULL, 0));
    struct file_handle *handle = calloc(1, sizeof *handle + MAX_HANDLE_SZ);
    int mount_id, directory = open(outputs, O_RDONLY);
    handle->handle_bytes = MAX_HANDLE_SZ;
    if (name_to_handle_at(AT_FDCWD, outputs, handle, &mount_id, 0) == 0)
        tell("open_by_handle", open_by_handle_at(directory, handle, O_RDONLY));
    else
        tell("open_by_handle", -1);
    tell("kernel_log", klogctl(3, parameters, 10));
    tell("clock", clock_settime(CLOCK_REALTIME, &now));
    tell("real_time_priority", sched_setscheduler(0, SCHED_FIFO, &first));
    tell("swap", swapon("/nowhere", 0));
    tell("reboot", syscall(SYS_reboot, 0, 0, 0, NULL));
    tell("mount", mount("none", "/tmp", "tmpfs", 0, NULL));
    apart("user_namespace", CLONE_NEWUSER);
    apart("mount_namespace", CLONE_NEWNS);
    make_device(outputs);
    for (unsigned i = 0; i < sizeof devices / sizeof *devices; i++)
        if (open_at(devices[i], O_RDWR) >= 0)
            printf("open%s 0\n", devices[i]);
    for (unsigned i = 0; i < sizeof settings / sizeof *settings; i++)
        if (open_at(settings[i], O_WRONLY) >= 0)
            printf("open%s 0\n", settings[i]);
    for (unsigned i = 0; i < sizeof sockets / sizeof *sockets; i++)
        if (connect_to(sockets[i]) >= 0)
            printf("connected%s 0\n", sockets[i]);
    for (int i = 2; i < argc; i++)
        if (open_at(argv[i], O_RDONLY) >= 0 || open_at(argv[i], O_RDONLY | O_DIRECTORY) >= 0)
            printf("open%s 0\n", argv[i]);
    count_processes();
    count_forks();
    count_user_namespaces();
    fflush(stdout);
    if (fork() == 0) { /* all that it can see, but itself */
        kill(-1, SIGSTOP);
        kill(-1, SIGCONT);
        _exit(0);
    }
    wait(NULL);
    printf("end 0\n");
    fflush(stdout);
    return 0;
}
