/* Loaded before the C library, it makes writing fail as a disk does: with the error whose number is in
 * the file that $DISK_FAULT names, for every file below $DISK_FAULT_BELOW, as long as that file is there. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static int (*real_open)(const char *, int, ...);
static ssize_t (*real_pwrite)(int, const void *, size_t, off64_t);
static ssize_t (*real_write)(int, const void *, size_t);
static int (*real_sync)(int), (*real_data_sync)(int);

__attribute__((constructor)) static void find(void) {
  real_open = dlsym(RTLD_NEXT, "open64");
  real_pwrite = dlsym(RTLD_NEXT, "pwrite64");
  real_write = dlsym(RTLD_NEXT, "write");
  real_sync = dlsym(RTLD_NEXT, "fsync");
  real_data_sync = dlsym(RTLD_NEXT, "fdatasync");
}

static int fault(const char *path) {
  const char *below = getenv("DISK_FAULT_BELOW"), *from = getenv("DISK_FAULT");
  if (!below || !from || strncmp(path, below, strlen(below))) return 0;
  char number[8] = {0};
  int file = real_open(from, O_RDONLY);
  if (file < 0) return 0;
  ssize_t got = read(file, number, sizeof number - 1);
  close(file);
  return got > 0 ? atoi(number) : 0;
}

static int fault_of(int descriptor) {
  char link[32], path[4096] = {0};
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  return readlink(link, path, sizeof path - 1) > 0 ? fault(path) : 0;
}

#define FAIL_OR(error, call) \
  int wrong = error;         \
  if (!wrong) return call;   \
  errno = wrong;             \
  return -1

int open64(const char *path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  int mode = va_arg(rest, int);
  va_end(rest);
  FAIL_OR(flags & (O_WRONLY | O_RDWR | O_CREAT) ? fault(path) : 0, real_open(path, flags, mode));
}

ssize_t pwrite64(int descriptor, const void *octets, size_t count, off64_t at) {
  FAIL_OR(fault_of(descriptor), real_pwrite(descriptor, octets, count, at));
}

ssize_t write(int descriptor, const void *octets, size_t count) {
  FAIL_OR(fault_of(descriptor), real_write(descriptor, octets, count));
}

int fsync(int descriptor) { FAIL_OR(fault_of(descriptor), real_sync(descriptor)); }

int fdatasync(int descriptor) { FAIL_OR(fault_of(descriptor), real_data_sync(descriptor)); }
