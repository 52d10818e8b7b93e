/* The limit that bench/bulk.py measures beside: a relay of TCP connections that does nothing but splice(2).
 *
 *     splice LISTEN_IP LISTEN_PORT TARGET_IP TARGET_PORT
 *
 * PROCESSES wait for connections, and each serves one at a time, by a pipe of 1 MiB for each direction. Nothing is limited, counted
 * or logged, and any error ends the connection. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PIPE = 1 << 20, PROCESSES = 8 };

struct direction { int from, to, in, out; size_t filled; int ended; };

static struct sockaddr_in address(char **words)
{
    struct sockaddr_in found = { .sin_family = AF_INET, .sin_port = htons(atoi(words[1])) };
    if (inet_pton(AF_INET, words[0], &found.sin_addr) != 1)
        exit(2);
    return found;
}

/* Moves what can be moved now. Returns what to poll for: POLLIN of `from`, POLLOUT of `to`, 0 at the end. */
static short move(struct direction *one)
{
    while (!one->ended) {
        if (!one->filled) {
            ssize_t got = splice(one->from, NULL, one->out, NULL, PIPE, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
            if (got < 0 && errno == EAGAIN)
                return POLLIN;
            if (got <= 0) {
                one->ended = 1;
                shutdown(one->to, SHUT_WR);
                break;
            }
            one->filled = got;
        }
        ssize_t put = splice(one->in, NULL, one->to, NULL, one->filled, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
        if (put < 0 && errno == EAGAIN)
            return POLLOUT;
        if (put <= 0) {
            one->ended = 1;
            shutdown(one->from, SHUT_RD);
            break;
        }
        one->filled -= put;
    }
    return 0;
}

static void relay(int client, int target)
{
    struct direction both[2] = { { .from = client, .to = target }, { .from = target, .to = client } };
    for (int i = 0; i < 2; i++) {
        int ends[2];
        if (pipe2(ends, O_NONBLOCK) || fcntl(both[i].from, F_SETFL, O_NONBLOCK))
            exit(1);
        both[i].in = ends[0];
        both[i].out = ends[1];
        fcntl(ends[1], F_SETPIPE_SZ, PIPE);
    }
    while (!both[0].ended || !both[1].ended) {
        struct pollfd polled[2] = { { .fd = client }, { .fd = target } };
        for (int i = 0; i < 2; i++) {
            short wanted = move(&both[i]);
            polled[wanted == POLLIN ? i : !i].events |= wanted;
        }
        for (int i = 0; i < 2; i++)
            if (!polled[i].events)
                polled[i].fd = -1; /* poll(2) would report POLLHUP again and again */
        if (polled[0].fd >= 0 || polled[1].fd >= 0)
            poll(polled, 2, -1);
    }
    for (int i = 0; i < 2; i++) {
        close(both[i].in);
        close(both[i].out);
    }
}

int main(int count, char **words)
{
    if (count != 5)
        return 2;
    struct sockaddr_in here = address(words + 1), there = address(words + 3);
    int on = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 4096))
        return 1;
    signal(SIGPIPE, SIG_IGN);
    for (int i = 1; i < PROCESSES; i++)
        if (fork() == 0)
            break;
    for (;;) {
        int client = accept(listener, NULL, NULL), target = socket(AF_INET, SOCK_STREAM, 0);
        if (client < 0)
            return 1;
        if (connect(target, (struct sockaddr *)&there, sizeof there) == 0)
            relay(client, target);
        close(client);
        close(target);
    }
}
