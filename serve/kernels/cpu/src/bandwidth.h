// How fast memory can be read: the ceiling of every kernel here. See bandwidth.cpp.
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Reads `bytes` once, in lines of 64, the threads side by side; asks for each line `ahead` bytes before it is read,
// 0: leaves that to the processor. Returns the exclusive or of all whole 8-byte words of the lines.
uint64_t read_memory(const uint8_t *from, size_t bytes, size_t ahead, int threads);

#ifdef __cplusplus
}
#endif
