// Preloaded: /proc/modules is empty where the kernel has none. libcufile reads it again for ever
// if it cannot be opened.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

typedef FILE *Open(const char *, const char *);

static FILE *open_by(const char *name, const char *path, const char *mode) {
    Open *next = (Open *)dlsym(RTLD_NEXT, name);
    FILE *file = next(path, mode);
    return file || strcmp(path, "/proc/modules") ? file : next("/dev/null", mode);
}

FILE *fopen(const char *path, const char *mode) { return open_by("fopen", path, mode); }
FILE *fopen64(const char *path, const char *mode) { return open_by("fopen64", path, mode); }
