/* Work that is counted, and a machine that troubles its neighbours by all means.
 *
 *     storm work FILE      count units of work in FILE, as 8 bytes, until there is FILE.end
 *     storm rage DIRECTORY as long as DIRECTORY/go is there, do harm; else work like everybody
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define MEGABYTE (1 << 20)

static char piece[MEGABYTE];

static void unit(void) {
    static uint32_t table[1 << 14];
    for (uint32_t i = 0; i < 1 << 17; i++)
        table[i * 2654435761u >> 18] += i;
}

static void burn_memory(void) {
    size_t size = 24 * MEGABYTE;
    char *all = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (size_t i = 0; all != MAP_FAILED && i < size; i += 4096)
        all[i] = 1;
    if (all != MAP_FAILED)
        munmap(all, size);
}

static void write_much(const char *directory, int number) {
    char path[4096];
    snprintf(path, sizeof path, "%s/big%d", directory, number);
    int file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    unlink(path);
    for (int i = 0; i < 8; i++)
        if (write(file, piece, sizeof piece) < 0)
            break;
    fdatasync(file);
    close(file);
}

static void make_many(const char *directory, int number) {
    char path[4096];
    for (int round = 0; round < 2; round++)
        for (int i = 0; i < 500; i++) {
            snprintf(path, sizeof path, "%s/empty%d.%d", directory, number, i);
            if (round)
                unlink(path);
            else
                close(open(path, O_WRONLY | O_CREAT, 0600));
        }
}

static void fork_many(void) {
    for (int i = 0; i < 100; i++) {
        pid_t child = fork();
        if (child == 0)
            _exit(0);
        if (child > 0)
            waitpid(child, NULL, 0);
    }
}

static void send_many(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(995)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int out = socket(AF_INET, SOCK_DGRAM, 0);
    for (int i = 0; i < 1000; i++)
        sendto(out, piece, 1000, MSG_DONTWAIT, (struct sockaddr *)&address, sizeof address);
    close(out);
}

static void harm(const char *directory, int number) {
    for (;;) {
        switch (number % 8) {
        case 0: burn_memory(); break;
        case 1: write_much(directory, number); break;
        case 2: make_many(directory, number); break;
        case 3: fork_many(); break;
        case 4: send_many(); break;
        case 5:
            if (write(STDOUT_FILENO, piece, sizeof piece) < 0)
                sched_yield();
            break;
        case 6:
            unshare(CLONE_NEWUSER);
            inotify_init();
            for (int i = 0; i < 10000; i++)
                sched_yield();
            break;
        default: unit();
        }
    }
}

static void rage(const char *directory) {
    char go[4096];
    snprintf(go, sizeof go, "%s/go", directory);
    memset(piece, 'y', sizeof piece);
    for (;;) {
        unit();
        if (access(go, F_OK) != 0)
            continue;
        pid_t children[CHILDREN];
        for (int i = 0; i < CHILDREN; i++)
            if ((children[i] = fork()) == 0)
                harm(directory, i);
        while (access(go, F_OK) == 0)
            usleep(20000);
        for (int i = 0; i < CHILDREN; i++)
            if (children[i] > 0)
                kill(children[i], SIGKILL);
        while (wait(NULL) > 0)
            continue;
    }
}

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "rage") == 0)
        rage(argv[2]);
    char end[4096];
    snprintf(end, sizeof end, "%s.end", argv[2]);
    int file = open(argv[2], O_WRONLY | O_CREAT, 0644);
    for (uint64_t units = 1;; units++) {
        unit();
        if (units % 64 == 0 && pwrite(file, &units, sizeof units, 0) < 0)
            return 1;
        if (units % 64 == 0 && access(end, F_OK) == 0)
            return 0;
    }
}
