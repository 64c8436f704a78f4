// Rows of a table in a file, read one by one. The bindings are in shard.py, where Python reads them too.

#include <errno.h>
#include <stdint.h>
#include <unistd.h>

#define PUBLIC __attribute__((visibility("default")))

// Read rows of `row_bytes` bytes each; `start` is the place of row 0. Return how many were read whole, or -errno.
PUBLIC int64_t fastpsl_read_rows(
    int fd, int64_t start, int64_t row_bytes, const int64_t *indices, int64_t num_rows, char *out
) {
    for (int64_t row = 0; row < num_rows; row++, out += row_bytes) {
        ssize_t num;
        do num = pread(fd, out, (size_t)row_bytes, start + indices[row] * row_bytes);
        while (num < 0 && errno == EINTR);
        if (num != row_bytes) return num < 0 ? -errno : row;
    }
    return num_rows;
}
