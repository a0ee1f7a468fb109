#ifndef ATB_DOUBLE_ATB_DOUBLE_H
#define ATB_DOUBLE_ATB_DOUBLE_H

// What tests ask of the double beyond the API it stands for: its log, its counters, and failures on demand. Exported by
// libascendcl.so, with C linkage so that ctypes reaches it. Every function may be called from any thread.

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// The log: one line for each violated rule ("ERROR ...") and each failure that was asked for ("INJECTED ...").
uint64_t atb_double_error_count();
// Copies the whole log, truncated to size - 1 bytes and terminated; returns its full length.
size_t atb_double_log(char* text, size_t size);
void atb_double_clear_log();

// Makes the nth coming call (1 is the next one) of `call` fail, once. `call` is a function name such as "aclrtMalloc",
// or "Setup", "Execute", "CreateOperation", "CreateContext", "kernel" (the device fails while executing it), or "any"
// (any of these).
void atb_double_fail(const char* call, uint64_t nth);
// How often `call` was called since the process began, failed or not.
uint64_t atb_double_calls(const char* call);

// Live objects: "device_memory", "device_bytes", "host_memory", "stream", "event", "context", "operation", "capture",
// or "any" (all but the bytes).
uint64_t atb_double_live(const char* kind);

#ifdef __cplusplus
}
#endif

#endif
