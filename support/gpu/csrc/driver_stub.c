/* Every function of the CUDA driver that cust_raw declares, defined here, so that a program which can use a GPU also starts
 * on a machine without a driver.
 *
 * Linked the ordinary way, such a program has libcuda.so.1 among its needed libraries, and the loader refuses to start it
 * where there is none. Here each function is a jump through a slot. The first call of a function fills its slot: with the
 * driver's own function when libcuda.so.1 can be loaded, else with one that returns CUDA_ERROR_NO_DEVICE, which is what a
 * driver without a GPU says too. A jump, not a call: registers and stack are as the caller left them, so one piece of code
 * serves every signature.
 *
 * The functions are listed in driver_functions.h, which `cargo xtask bindings` writes. They are hidden: nothing outside the
 * program sees them, libcuda itself least of all.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if !defined(__linux__) || !(defined(__x86_64__) || defined(__aarch64__))
#error "the CUDA driver is reached on Linux, on x86-64 and AArch64"
#endif

#define HIDDEN __attribute__((visibility("hidden")))

/* Values of CUresult, from the CUDA driver API's documentation. */
enum { SUCCESS = 0, NO_DEVICE = 100, NOT_FOUND = 500 };

static const char *const names[] = {
#define FUNCTION(index, name) #name,
#include "driver_functions.h"
#undef FUNCTION
};

enum { COUNT = sizeof names / sizeof names[0] };

/* Null until the first call. Read by the jumps below with acquire, written with release: what the driver set up while it
 * was loaded is visible to whoever finds its function here. */
HIDDEN void *v3_gpu_driver_slots[COUNT];

static int no_device(void) { return NO_DEVICE; }

/* The driver is there and does not have the function: it is older or newer than the declaration. */
static int not_found(void) { return NOT_FOUND; }

/* Without a driver there is still an error to be named. */
static int error_name(int error, const char **text) {
    *text = error == SUCCESS ? "CUDA_SUCCESS" : error == NO_DEVICE ? "CUDA_ERROR_NO_DEVICE" : "CUDA_ERROR_UNKNOWN";
    return SUCCESS;
}

static int error_string(int error, const char **text) {
    *text = error == SUCCESS     ? "no error"
            : error == NO_DEVICE ? "no CUDA-capable device is detected (no NVIDIA driver is installed)"
                                 : "an error of the CUDA driver, which is not installed";
    return SUCCESS;
}

/* The driver's library, or null. Two threads may both open it: the second time only counts. */
static void *library(void) {
    static void *opened;
    static int state; /* 0: not tried, 1: opened, 2: there is none */
    int seen = __atomic_load_n(&state, __ATOMIC_ACQUIRE);
    if (seen == 0) {
        void *handle = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
        if (handle != NULL) __atomic_store_n(&opened, handle, __ATOMIC_RELAXED);
        seen = handle != NULL ? 1 : 2;
        __atomic_store_n(&state, seen, __ATOMIC_RELEASE);
    }
    return seen == 1 ? __atomic_load_n(&opened, __ATOMIC_RELAXED) : NULL;
}

/* A function of the driver by its exported name; null when there is no driver, or when it has none of that name. */
HIDDEN void *v3_gpu_driver_symbol(const char *name) {
    void *handle = library();
    return handle != NULL ? dlsym(handle, name) : NULL;
}

/* Fills a slot. Called by the code below, before the first call of a function goes on. */
HIDDEN __attribute__((used)) void *v3_gpu_driver_find(uint32_t index) {
    const char *name = names[index];
    void *function = v3_gpu_driver_symbol(name);
    if (function == NULL) {
        if (library() != NULL) function = (void *)not_found;
        else if (strcmp(name, "cuGetErrorName") == 0) function = (void *)error_name;
        else if (strcmp(name, "cuGetErrorString") == 0) function = (void *)error_string;
        else function = (void *)no_device;
    }
    __atomic_store_n(&v3_gpu_driver_slots[index], function, __ATOMIC_RELEASE);
    return function;
}

#if defined(__x86_64__)

/* r11 is free at a function's entry (System V ABI, section 3.2.1). endbr64 marks a target of indirect calls. */
#define ENTRY(index, name)                                                                                                  \
    ".p2align 4\n.globl " #name "\n.hidden " #name "\n.type " #name ",@function\n" #name ":\n"                              \
    ".cfi_startproc\nendbr64\n"                                                                                             \
    "movq v3_gpu_driver_slots+8*" #index "(%rip), %r11\ntestq %r11, %r11\njz 1f\njmp *%r11\n"                               \
    "1: movl $" #index ", %r11d\njmp v3_gpu_driver_first_call\n"                                                            \
    ".cfi_endproc\n.size " #name ",.-" #name "\n"

/* Keeps what may hold arguments: six integer and eight vector registers. */
__asm__(".pushsection .text,\"ax\",@progbits\n"
        ".p2align 4\n.type v3_gpu_driver_first_call,@function\nv3_gpu_driver_first_call:\n"
        ".cfi_startproc\n"
        "pushq %rbp\n.cfi_def_cfa_offset 16\n.cfi_offset %rbp,-16\nmovq %rsp, %rbp\n.cfi_def_cfa_register %rbp\n"
        "subq $176, %rsp\n"
        "movq %rdi, 0(%rsp)\nmovq %rsi, 8(%rsp)\nmovq %rdx, 16(%rsp)\nmovq %rcx, 24(%rsp)\nmovq %r8, 32(%rsp)\nmovq %r9, 40(%rsp)\n"
        "movaps %xmm0, 48(%rsp)\nmovaps %xmm1, 64(%rsp)\nmovaps %xmm2, 80(%rsp)\nmovaps %xmm3, 96(%rsp)\n"
        "movaps %xmm4, 112(%rsp)\nmovaps %xmm5, 128(%rsp)\nmovaps %xmm6, 144(%rsp)\nmovaps %xmm7, 160(%rsp)\n"
        "movl %r11d, %edi\ncall v3_gpu_driver_find\nmovq %rax, %r11\n"
        "movq 0(%rsp), %rdi\nmovq 8(%rsp), %rsi\nmovq 16(%rsp), %rdx\nmovq 24(%rsp), %rcx\nmovq 32(%rsp), %r8\nmovq 40(%rsp), %r9\n"
        "movaps 48(%rsp), %xmm0\nmovaps 64(%rsp), %xmm1\nmovaps 80(%rsp), %xmm2\nmovaps 96(%rsp), %xmm3\n"
        "movaps 112(%rsp), %xmm4\nmovaps 128(%rsp), %xmm5\nmovaps 144(%rsp), %xmm6\nmovaps 160(%rsp), %xmm7\n"
        "leave\n.cfi_def_cfa %rsp,8\njmp *%r11\n"
        ".cfi_endproc\n.size v3_gpu_driver_first_call,.-v3_gpu_driver_first_call\n"
        ".popsection\n");

#else /* AArch64 */

/* x16 and x17 are free at a function's entry, and a branch through x16 may reach a function's landing pad (AAPCS64, section
 * 6.1.1). hint #34 is `bti c`, which marks a target of indirect calls. */
#define ENTRY(index, name)                                                                                                  \
    ".p2align 4\n.globl " #name "\n.hidden " #name "\n.type " #name ",%function\n" #name ":\n"                              \
    ".cfi_startproc\nhint #34\n"                                                                                            \
    "adrp x17, v3_gpu_driver_slots+8*" #index "\nadd x17, x17, :lo12:v3_gpu_driver_slots+8*" #index "\n"                    \
    "ldar x16, [x17]\ncbz x16, 1f\nbr x16\n"                                                                                \
    "1: mov w16, #" #index "\nb v3_gpu_driver_first_call\n"                                                                 \
    ".cfi_endproc\n.size " #name ",.-" #name "\n"

/* Keeps what may hold arguments: x0 to x8 and q0 to q7. */
__asm__(".pushsection .text,\"ax\",%progbits\n"
        ".p2align 4\n.type v3_gpu_driver_first_call,%function\nv3_gpu_driver_first_call:\n"
        ".cfi_startproc\n"
        "stp x29, x30, [sp, #-224]!\n.cfi_def_cfa_offset 224\n.cfi_offset 29,-224\n.cfi_offset 30,-216\nmov x29, sp\n"
        "stp x0, x1, [sp, #16]\nstp x2, x3, [sp, #32]\nstp x4, x5, [sp, #48]\nstp x6, x7, [sp, #64]\nstr x8, [sp, #80]\n"
        "stp q0, q1, [sp, #96]\nstp q2, q3, [sp, #128]\nstp q4, q5, [sp, #160]\nstp q6, q7, [sp, #192]\n"
        "mov w0, w16\nbl v3_gpu_driver_find\nmov x16, x0\n"
        "ldp x0, x1, [sp, #16]\nldp x2, x3, [sp, #32]\nldp x4, x5, [sp, #48]\nldp x6, x7, [sp, #64]\nldr x8, [sp, #80]\n"
        "ldp q0, q1, [sp, #96]\nldp q2, q3, [sp, #128]\nldp q4, q5, [sp, #160]\nldp q6, q7, [sp, #192]\n"
        "ldp x29, x30, [sp], #224\n.cfi_restore 29\n.cfi_restore 30\n.cfi_def_cfa_offset 0\nbr x16\n"
        ".cfi_endproc\n.size v3_gpu_driver_first_call,.-v3_gpu_driver_first_call\n"
        ".popsection\n");

#endif

__asm__(".pushsection .text\n"
#define FUNCTION(index, name) ENTRY(index, name)
#include "driver_functions.h"
#undef FUNCTION
        ".popsection\n");
