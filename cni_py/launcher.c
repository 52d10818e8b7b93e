/* A plugin's executable, for hosts with the warm service `cni-py serve`: no interpreter is started for a call.
 *
 * It does what cni_py/warm.py does, where the protocol is described. Where the service does not take the call, it becomes
 * the launcher in Python. `cni-py install` compiles this file once (commands/native.py), and writes FIELDS, the paths that an
 * executable needs, into each copy.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define FIELDS_SIZE 16384
#define REQUEST_MAX (1 << 20)
#define MAGIC "cni-py\0\1"
#define BEGIN_S 5
enum { HEAD = 12, REPLY_HEAD = 6, FDS = 6 };

/* Strings, each ended by a zero: plugin, folder of the package, interpreter, folder of the launchers in Python, error object if
 * one of these is gone; then the names of all plugins, and an empty one.
 * Not static, so that the compiler does not take the text below for what is there. */
char fields[FIELDS_SIZE] = "cni-py launcher: fields";

static const char LOST[] =
    "{\n    \"code\": 999,\n    \"msg\": \"the process of `cni-py serve` that ran this call was killed or has crashed: run DEL, "
    "which removes what it made\"\n}";
extern char **environ;
static const char *plugin;
static int sock = -1;
static volatile sig_atomic_t asked;

static const char *field(int number)
{
	const char *found = fields;

	while (number--)
		found += strlen(found) + 1;
	return found;
}

/* An executable that is called as one of ours is that plugin; else, as the copy cnv-bridge, the one that it was written for. */
static const char *chosen(const char *called)
{
	const char *name = strrchr(called, '/');

	name = name ? name + 1 : called;
	for (int i = 5; *field(i); i++)
		if (!strcmp(name, field(i)))
			return field(i);
	return field(0);
}

static void stop(int number)
{
	int before = errno;

	asked = number;
	shutdown(sock, SHUT_WR);
	errno = before;
}

/* Writes all of it; 0 or the errno. */
static int put(const char *text, size_t size)
{
	while (size) {
		ssize_t done = write(1, text, size);

		if (done < 0 && errno != EINTR)
			return errno;
		if (done > 0) {
			text += done;
			size -= (size_t)done;
		}
	}
	return 0;
}

/* Reads that many bytes; how many there were until the end, an error or the timeout. */
static size_t get(char *buffer, size_t size)
{
	size_t done = 0;

	while (done < size) {
		ssize_t part = read(sock, buffer + done, size - done);

		if (part < 0 && errno == EINTR)
			continue;
		if (part <= 0)
			break;
		done += (size_t)part;
	}
	return done;
}

/* The request; its size, 0 if it is too large. */
static size_t request(char *buffer)
{
	char *end = buffer + HEAD, *limit = buffer + REQUEST_MAX;
	mode_t mask = umask(077);
	uint32_t size;

	umask(mask);
	end += snprintf(end, FIELDS_SIZE, "%s%c%s%c%o", plugin, 0, field(1), 0, (unsigned)mask);
	for (char **entry = environ; *entry; entry++) {
		size_t length = strlen(*entry);

		if (length + 2 > (size_t)(limit - end))
			return 0;
		*end++ = 0;
		end = (char *)memcpy(end, *entry, length) + length;
	}
	size = (uint32_t)(end - buffer - HEAD);
	memcpy(buffer, MAGIC, 8);
	memcpy(buffer + 8, &size, 4);
	return HEAD + size;
}

static int hand_over(const char *data, size_t size)
{
	int fds[FDS] = {0,
			2,
			open(".", O_PATH | O_CLOEXEC),
			open("/", O_PATH | O_CLOEXEC),
			open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC),
			open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC)};
	union {
		char bytes[CMSG_SPACE(sizeof(fds))];
		struct cmsghdr head;
	} control = {.head = {.cmsg_len = CMSG_LEN(sizeof(fds)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
	struct iovec text = {.iov_base = (void *)data, .iov_len = size};
	struct msghdr message = {
	    .msg_iov = &text, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes)};
	ssize_t sent = -1;

	memcpy(CMSG_DATA(&control.head), fds, sizeof(fds));
	if (fds[2] >= 0 && fds[3] >= 0 && fds[4] >= 0 && fds[5] >= 0)
		sent = sendmsg(sock, &message, MSG_NOSIGNAL);
	for (int i = 2; i < FDS; i++)
		close(fds[i]);
	while (sent > 0 && (size -= (size_t)sent))
		sent = send(sock, data += sent, size, MSG_NOSIGNAL);
	return sent > 0;
}

/* Asks the service; whether the plugin has begun. If not, it will not begin any more: see _began_meanwhile() in warm.py. */
static int begun(void)
{
	static char buffer[REQUEST_MAX], hello[8];
	const char *own = geteuid() ? getenv("XDG_RUNTIME_DIR") : 0;
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct timeval limit = {BEGIN_S, 0}, none = {0, 0};
	struct ucred peer = {0, (uid_t)-1, 0};
	socklen_t length = sizeof(peer);
	size_t size = request(buffer);
	int well;

	if ((size_t)snprintf(address.sun_path, sizeof(address.sun_path), "%s/cni-py/serve.sock", own && *own ? own : "/run") >=
	    sizeof(address.sun_path))
		return 0;
	setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	well = size && !connect(sock, (struct sockaddr *)&address, sizeof(address)) &&
	       !getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &peer, &length) && peer.uid == geteuid() &&
	       get(hello, 8) == 8 && !memcmp(hello, MAGIC, 8) && hand_over(buffer, size) && get(buffer, REPLY_HEAD) == REPLY_HEAD;
	if (!well) {
		shutdown(sock, SHUT_RD);
		well = get(buffer, REPLY_HEAD) == REPLY_HEAD;
	}
	setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &none, sizeof(none));
	return well && buffer[0] == 'B';
}

/* Writes what the plugin answers to stdout; the exit status. */
static int follow(void)
{
	char head[REPLY_HEAD], *text;
	uint32_t size;
	int status = -1;

	while (get(head, REPLY_HEAD) == REPLY_HEAD) {
		unsigned char failed;

		if (head[0] == 'E')
			return (unsigned char)head[1];
		memcpy(&size, head + 2, 4);
		text = malloc(size + 1UL);
		if (!text || get(text, size) < size)
			break;
		failed = (unsigned char)put(text, size);
		free(text);
		status = failed ? -1 : (unsigned char)head[1];
		if (send(sock, &failed, 1, MSG_NOSIGNAL) < 0)
			break;
	}
	if (status < 0) {
		put(LOST, sizeof(LOST) - 1);
		return 1;
	}
	return status;
}

int main(int argc, char **argv)
{
	static const int numbers[] = {SIGTERM, SIGINT, SIGHUP, SIGPIPE};
	struct sigaction before[4], action = {.sa_handler = stop};
	char script[FIELDS_SIZE];

	plugin = chosen(argc ? argv[0] : "");
	snprintf(script, sizeof(script), "%s/%s", field(3), plugin);
	if (argc > 1) { /* no call, but a program by itself: `dhcp daemon` */
		char **words = calloc((size_t)argc + 3, sizeof(*words));

		if (words) {
			words[0] = (char *)field(2);
			words[1] = (char *)"-IS";
			words[2] = script;
			memcpy(words + 3, argv + 1, sizeof(*words) * (size_t)(argc - 1));
			execv(field(2), words);
		}
	}
	sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (sock > 2) { /* otherwise a standard stream is closed: its number would be given to what is opened next */
		for (int i = 0; i < 4; i++) {
			sigaction(numbers[i], 0, &before[i]);
			action.sa_handler = numbers[i] == SIGPIPE || before[i].sa_handler == SIG_IGN ? SIG_IGN : stop; /* nohup(1) */
			sigaction(numbers[i], &action, 0);
		}
		if (begun())
			_exit(follow());
		for (int i = 0; i < 4; i++)
			sigaction(numbers[i], &before[i], 0);
		if (asked)
			raise(asked);
	}
	if (sock >= 0)
		close(sock);
	if (!access(script, R_OK)) /* an interpreter without a script says so to a person, and prints no error object */
		execl(field(2), field(2), "-IS", script, "direct", (char *)0);
	put(field(4), strlen(field(4)));
	return 1;
}
