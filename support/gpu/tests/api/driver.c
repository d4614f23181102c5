/* Stands in for libcuda.so.1 in a test: two devices in host memory, everything done at once, every rule that the back end must keep
 * checked. What breaks a rule is printed and ends the process with status 3, and so does what was not given back at the end.
 *
 * Kernels are C functions under the names of the test's PTX. V3_STAND_IN=old: a driver of CUDA 12.0 whose devices have no memory
 * pools. Signatures and values: CUDA driver API, CUDA 13.0. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef uint64_t ptr;
enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_CONTEXT = 201, INVALID_PTX = 218, INVALID_HANDLE = 400,
       NOT_FOUND = 500, ILLEGAL_ADDRESS = 700, PEER_ALREADY = 704, LAUNCH_FAILED = 719, TOO_LARGE = 720, INVALID_CLUSTER = 912 };
enum { CONTEXT, STREAM, EVENT, MODULE, FUNCTION, DEVICE_MEMORY, POOL_MEMORY, HOST_MEMORY, KINDS };
static const char *const kinds[] = {"context", "stream", "event", "module", "function", "memory", "pool memory", "host memory"};

typedef struct object {
    struct object *next;
    int kind, device, users;
    char *memory;
    size_t bytes;
    const struct kernel *kernel;
    struct object *module;
    int timing, recorded, shared_allowed, clusters_allowed;
} object;

typedef struct kernel {
    const char *name;
    int params;
    size_t sizes[3];
    int max_threads, static_shared, cluster;
    int (*run)(int device, object *module, void **params, const unsigned *grid, const unsigned *block, unsigned shared, unsigned cluster);
} kernel;

static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static object *objects;
static object contexts[2] = {{.kind = CONTEXT, .device = 0}, {.kind = CONTEXT, .device = 1}};
static int failed[2], peers[2][2], pool_access[2][2], pool_kept[2];
static long launches, programmatic, clusters, tensor_maps;
static __thread object *stack[16];
static __thread int depth;

#define LOCKED pthread_mutex_lock(&lock); __attribute__((cleanup(unlock))) int unlock_ = 0; (void)unlock_
static void unlock(int *unused) { (void)unused; pthread_mutex_unlock(&lock); }

#define RULE(holds, ...) do { if (!(holds)) { fprintf(stderr, "STAND-IN: %s: ", __func__); fprintf(stderr, __VA_ARGS__); \
    fputc('\n', stderr); _exit(3); } } while (0)
/* A call that wants a context that is current and has not failed. */
#define CURRENT RULE(depth > 0, "no context is current"); const int device = stack[depth - 1]->device; \
    if (failed[device]) return failed[device]

static int old(void) { const char *mode = getenv("V3_STAND_IN"); return mode && !strcmp(mode, "old"); }

static object *make(int kind, int device) {
    object *o = calloc(1, sizeof *o);
    o->kind = kind, o->device = device, o->next = objects;
    return objects = o;
}

static object *find(int kind, const void *handle) {
    for (object *o = objects; o; o = o->next)
        if (o == handle) { RULE(o->kind == kind, "a %s where a %s belongs", kinds[o->kind], kinds[kind]); return o; }
    RULE(0, "no live %s is %p", kinds[kind], handle);
    return NULL;
}

static void forget(object *gone) {
    for (object **o = &objects; *o; o = &(*o)->next)
        if (*o == gone) { *o = gone->next; free(gone); return; }
}

/* The live memory that holds these bytes. */
static object *holds(ptr address, size_t bytes) {
    for (object *o = objects; o; o = o->next)
        if (o->memory && o->kind != MODULE && address >= (ptr)o->memory && address + bytes <= (ptr)o->memory + o->bytes) return o;
    return NULL;
}

static int may_reach(int device, const object *o) {
    if (o->kind == HOST_MEMORY || o->device == device) return 1;
    return o->kind == POOL_MEMORY ? pool_access[o->device][device] : peers[device][o->device];
}

/* ---- kernels ---- */

#define RUN(name) static int name(int device, object *module, void **params, const unsigned *grid, const unsigned *block, unsigned shared, unsigned cluster)
#define UNUSED (void)device, (void)module, (void)params, (void)grid, (void)block, (void)shared, (void)cluster

static uint32_t *word(int device, ptr address) {
    object *o = holds(address, 4);
    return o && may_reach(device, o) ? (uint32_t *)address : NULL;
}

RUN(scale) {
    UNUSED;
    const ptr x = *(ptr *)params[0];
    const uint32_t n = *(uint32_t *)params[1], factor = *(uint32_t *)params[2];
    for (uint32_t i = 0; i < grid[0] * block[0] && i < n; ++i) {
        uint32_t *at = word(device, x + 4 * i);
        if (!at) return ILLEGAL_ADDRESS;
        *at *= factor;
    }
    return OK;
}
RUN(mixed) {
    UNUSED;
    uint32_t *out = word(device, *(ptr *)params[2]);
    if (!out) return ILLEGAL_ADDRESS;
    *out = *(uint32_t *)params[0] + *(uint8_t *)params[1];
    return OK;
}
RUN(shared_size) {
    UNUSED;
    uint32_t *out = word(device, *(ptr *)params[0]);
    if (!out) return ILLEGAL_ADDRESS;
    *out = shared;
    return OK;
}
RUN(nothing) { UNUSED; return OK; }
RUN(bump) { UNUSED; ++*(uint32_t *)module->module->memory; return OK; }
RUN(fails) { UNUSED; return LAUNCH_FAILED; }
RUN(ranks) {
    UNUSED;
    for (unsigned i = 0; i < grid[0]; ++i) {
        uint32_t *out = word(device, *(ptr *)params[0] + 4 * i);
        if (!out) return ILLEGAL_ADDRESS;
        *out = i % cluster;
    }
    return OK;
}
RUN(first) { UNUSED; *word(device, *(ptr *)params[0]) = 5; return OK; }
RUN(second) { UNUSED; *word(device, *(ptr *)params[0] + 4) = *word(device, *(ptr *)params[0]) + 1; return OK; }

static const kernel kernels[] = {
    {"scale", 3, {8, 4, 4}, 1024, 0, 0, scale},    {"mixed", 3, {24, 1, 8}, 1024, 0, 0, mixed},
    {"shared", 1, {8}, 1024, 1024, 0, shared_size}, {"small", 0, {0}, 64, 0, 0, nothing},
    {"nothing", 0, {0}, 1024, 0, 0, nothing},      {"bump", 0, {0}, 1024, 0, 0, bump},
    {"fails", 0, {0}, 1024, 0, 0, fails},          {"pair", 1, {8}, 1024, 0, 2, ranks},
    {"ranks", 1, {8}, 1024, 0, 0, ranks},          {"first", 1, {8}, 1024, 0, 0, first},
    {"second", 1, {8}, 1024, 0, 0, second},
};

/* ---- the driver, devices and contexts ---- */

static int started;

int cuInit(unsigned flags) {
    RULE(flags == 0, "flags %u", flags);
    started = 1;
    return OK;
}
int cuDriverGetVersion(int *version) { *version = old() ? 12000 : 13000; return OK; }
int cuGetErrorName(int error, const char **text) {
    *text = error == LAUNCH_FAILED ? "CUDA_ERROR_LAUNCH_FAILED" : error == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR_OF_STAND_IN";
    return OK;
}
int cuGetErrorString(int error, const char **text) { (void)error; *text = "as the stand-in says"; return OK; }
int cuDeviceGetCount(int *count) { RULE(started, "before cuInit"); *count = 2; return OK; }
int cuDeviceGet(int *device, int ordinal) {
    if (ordinal < 0 || ordinal > 1) return INVALID_DEVICE;
    *device = ordinal;
    return OK;
}
int cuDeviceGetName(char *name, int length, int device) { snprintf(name, length, "stand-in %d", device); return OK; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { (void)device; *bytes = (size_t)80 << 30; return OK; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    RULE(device == 0 || device == 1, "device %d", device);
    switch (attribute) {
    case 16: *value = 132; break;              /* multiprocessors */
    case 38: *value = 50 << 20; break;         /* L2 */
    case 75: *value = 9; break;                /* compute capability */
    case 76: *value = 0; break;
    case 97: *value = 227 * 1024; break;       /* shared memory of a block that asks */
    case 115: *value = !old(); break;          /* memory pools */
    default: RULE(0, "attribute %d", attribute);
    }
    return OK;
}
int cuDevicePrimaryCtxRetain(object **context, int device) {
    LOCKED;
    *context = &contexts[device];
    ++contexts[device].users;
    return OK;
}
int cuDevicePrimaryCtxRelease_v2(int device) {
    LOCKED;
    RULE(contexts[device].users > 0, "released too often");
    if (--contexts[device].users == 0)
        for (object *o = objects; o; o = o->next) RULE(o->device != device || failed[device], "a %s outlives its context", kinds[o->kind]);
    return OK;
}
int cuCtxGetCurrent(object **context) { *context = depth ? stack[depth - 1] : NULL; return OK; }
int cuCtxSetCurrent(object *context) {
    if (depth) --depth;
    if (context) stack[depth++] = context;
    return OK;
}
int cuCtxPushCurrent_v2(object *context) {
    RULE(context == &contexts[0] || context == &contexts[1], "no context");
    RULE(context->users > 0, "the context is gone");
    RULE(depth < 8, "pushed and not popped");
    stack[depth++] = context;
    return OK;
}
int cuCtxPopCurrent_v2(object **context) {
    RULE(depth > 0, "nothing to pop");
    *context = stack[--depth];
    return OK;
}
int cuCtxSynchronize(void) { LOCKED; CURRENT; return OK; }
int cuDeviceCanAccessPeer(int *can, int device, int peer) { *can = device != peer; return OK; }
int cuCtxEnablePeerAccess(object *peer, unsigned flags) {
    LOCKED;
    CURRENT;
    RULE(flags == 0 && peer != &contexts[device], "flags %u", flags);
    if (peers[device][peer->device]) return PEER_ALREADY;
    peers[device][peer->device] = 1;
    return OK;
}

/* ---- memory ---- */

static int allocate(int kind, int device, size_t bytes, ptr *address) {
    RULE(bytes > 0, "no bytes");
    if (bytes > (size_t)1 << 40) return OUT_OF_MEMORY;
    object *o = make(kind, device);
    o->bytes = bytes;
    o->memory = aligned_alloc(256, (bytes + 255) / 256 * 256);
    memset(o->memory, 0xcd, bytes);
    *address = (ptr)o->memory;
    return OK;
}
static int release(int kind, ptr address) {
    object *o = holds(address, 1);
    RULE(o && o->kind == kind && (ptr)o->memory == address, "%#lx is no live %s", (long)address, kinds[kind]);
    memset(o->memory, 0xdd, o->bytes);
    free(o->memory);
    forget(o);
    return OK;
}
int cuMemAlloc_v2(ptr *address, size_t bytes) { LOCKED; CURRENT; RULE(old(), "there are pools"); return allocate(DEVICE_MEMORY, device, bytes, address); }
int cuMemFree_v2(ptr address) { LOCKED; CURRENT; return release(DEVICE_MEMORY, address); }
int cuMemAllocAsync(ptr *address, size_t bytes, object *stream) {
    LOCKED;
    CURRENT;
    RULE(!old(), "there are no pools");
    RULE(find(STREAM, stream)->device == device, "a stream of another context");
    return allocate(POOL_MEMORY, device, bytes, address);
}
int cuMemFreeAsync(ptr address, object *stream) { LOCKED; CURRENT; find(STREAM, stream); return release(POOL_MEMORY, address); }
int cuDeviceGetDefaultMemPool(void **pool, int device) { *pool = &pool_kept[device]; return OK; }
int cuMemPoolSetAttribute(void *pool, int attribute, void *value) {
    RULE((pool == &pool_kept[0] || pool == &pool_kept[1]) && attribute == 4, "attribute %d", attribute);
    *(int *)pool = *(uint64_t *)value == UINT64_MAX;
    return OK;
}
int cuMemPoolSetAccess(void *pool, const int *access, size_t count) {
    LOCKED;
    /* location: type (1 is a device) and number; flags (3 is reading and writing) */
    RULE(count == 1 && access[0] == 1 && access[2] == 3, "type %d, flags %d", access[0], access[2]);
    pool_access[pool == &pool_kept[1]][access[1]] = 1;
    return OK;
}
int cuMemHostAlloc(void **host, size_t bytes, unsigned flags) {
    LOCKED;
    CURRENT;
    RULE(flags == 3, "flags %u", flags);
    return allocate(HOST_MEMORY, device, bytes, (ptr *)host);
}
int cuMemHostGetDevicePointer_v2(ptr *address, void *host, unsigned flags) {
    LOCKED;
    CURRENT;
    RULE(flags == 0 && holds((ptr)host, 1), "flags %u", flags);
    *address = (ptr)host;
    return OK;
}
int cuMemFreeHost(void *host) { LOCKED; CURRENT; return release(HOST_MEMORY, (ptr)host); }

static int copy(int device, void *to, const void *from, size_t bytes, object *stream) {
    RULE(find(STREAM, stream)->device == device, "a stream of another context");
    memmove(to, from, bytes);
    return OK;
}
int cuMemcpyHtoDAsync_v2(ptr to, const void *from, size_t bytes, object *stream) {
    LOCKED;
    CURRENT;
    RULE(bytes > 0 && holds(to, bytes), "%zu bytes to %#lx", bytes, (long)to);
    return copy(device, (void *)to, from, bytes, stream);
}
int cuMemcpyDtoHAsync_v2(void *to, ptr from, size_t bytes, object *stream) {
    LOCKED;
    CURRENT;
    RULE(bytes > 0 && holds(from, bytes), "%zu bytes from %#lx", bytes, (long)from);
    return copy(device, to, (void *)from, bytes, stream);
}
int cuMemcpyAsync(ptr to, ptr from, size_t bytes, object *stream) {
    LOCKED;
    CURRENT;
    RULE(bytes > 0 && holds(to, bytes) && holds(from, bytes), "%zu bytes", bytes);
    return copy(device, (void *)to, (void *)from, bytes, stream);
}
int cuMemsetD8Async(ptr to, unsigned char value, size_t bytes, object *stream) {
    LOCKED;
    CURRENT;
    find(STREAM, stream);
    RULE(bytes > 0 && holds(to, bytes), "%zu bytes at %#lx", bytes, (long)to);
    memset((void *)to, value, bytes);
    return OK;
}

/* ---- streams and events ---- */

int cuStreamCreateWithPriority(object **stream, unsigned flags, int priority) {
    LOCKED;
    CURRENT;
    RULE(flags <= 1 && priority == 0, "flags %u", flags);
    *stream = make(STREAM, device);
    return OK;
}
int cuStreamDestroy_v2(object *stream) { LOCKED; RULE(depth > 0, "no context is current"); forget(find(STREAM, stream)); return OK; }
int cuStreamSynchronize(object *stream) { LOCKED; CURRENT; find(STREAM, stream); return OK; }
int cuStreamQuery(object *stream) { LOCKED; CURRENT; RULE(stream == NULL, "not the null stream"); return OK; }
int cuStreamWaitEvent(object *stream, object *event, unsigned flags) {
    LOCKED;
    CURRENT;
    find(STREAM, stream), find(EVENT, event);
    RULE(flags == 0, "flags %u", flags);
    return OK;
}
int cuEventCreate(object **event, unsigned flags) {
    LOCKED;
    CURRENT;
    RULE(flags == 0 || flags == 2, "flags %u", flags);
    *event = make(EVENT, device);
    (*event)->timing = flags == 0;
    return OK;
}
int cuEventDestroy_v2(object *event) { LOCKED; forget(find(EVENT, event)); return OK; }
int cuEventRecord(object *event, object *stream) {
    LOCKED;
    CURRENT;
    RULE(find(EVENT, event)->device == find(STREAM, stream)->device, "event and stream are of different contexts");
    event->recorded = 1;
    return OK;
}
int cuEventSynchronize(object *event) { LOCKED; CURRENT; find(EVENT, event); return OK; }
int cuEventQuery(object *event) { LOCKED; CURRENT; find(EVENT, event); return OK; }
int cuEventElapsedTime(float *milliseconds, object *from, object *to) {
    LOCKED;
    CURRENT;
    if (!find(EVENT, from)->timing || !find(EVENT, to)->timing || !from->recorded || !to->recorded) return INVALID_HANDLE;
    *milliseconds = 0.5f;
    return OK;
}

/* ---- modules and launches ---- */

int cuModuleLoadDataEx(object **module, const char *text, unsigned count, const int *options, void **values) {
    LOCKED;
    CURRENT;
    /* 5: where to write what is wrong; 6: how much room there is, by value. */
    RULE(count == 2 && options[0] == 5 && options[1] == 6, "%u options", count);
    const size_t room = (size_t)values[1];
    const char *wrong = strstr(text, "%r3 %r4");
    wrong = wrong ? wrong : strstr(text, "mul.middle");
    if (!strstr(text, ".version") || wrong) {
        int line = 1;
        for (const char *c = text; wrong && c < wrong; ++c) line += *c == '\n';
        memset(values[0], 'x', room);
        snprintf(values[0], room, "ptxas application ptx input, line %d; error: %.10s", line, wrong ? wrong : "no version");
        return INVALID_PTX;
    }
    *module = make(MODULE, device);
    ptr variable;
    allocate(DEVICE_MEMORY, device, 4, &variable);
    *(uint32_t *)variable = 7;
    (*module)->module = holds(variable, 4);
    return OK;
}
int cuModuleUnload(object *module) {
    LOCKED;
    RULE(depth > 0, "no context is current");
    find(MODULE, module);
    for (object *o = objects, *next; o; o = next) {
        next = o->next;
        if (o->kind == FUNCTION && o->module == module) forget(o);
    }
    release(DEVICE_MEMORY, (ptr)module->module->memory);
    forget(module);
    return OK;
}
int cuModuleGetFunction(object **function, object *module, const char *name) {
    LOCKED;
    CURRENT;
    find(MODULE, module);
    for (size_t i = 0; i < sizeof kernels / sizeof kernels[0]; ++i) {
        if (strcmp(kernels[i].name, name)) continue;
        *function = make(FUNCTION, device);
        (*function)->kernel = &kernels[i], (*function)->module = module;
        return OK;
    }
    return NOT_FOUND;
}
int cuModuleGetGlobal_v2(ptr *address, size_t *bytes, object *module, const char *name) {
    LOCKED;
    CURRENT;
    if (strcmp(name, "counter")) return NOT_FOUND;
    *address = (ptr)find(MODULE, module)->module->memory, *bytes = 4;
    return OK;
}
int cuFuncGetAttribute(int *value, int attribute, object *function) {
    LOCKED;
    CURRENT;
    const kernel *k = find(FUNCTION, function)->kernel;
    switch (attribute) {
    case 0: *value = k->max_threads; break;
    case 1: *value = k->static_shared; break;
    case 4: *value = 16; break; /* registers */
    case 11: *value = k->cluster; break;
    case 12: case 13: *value = k->cluster > 0; break;
    default: RULE(0, "attribute %d", attribute);
    }
    return OK;
}
int cuFuncSetAttribute(object *function, int attribute, int value) {
    LOCKED;
    CURRENT;
    object *f = find(FUNCTION, function);
    RULE(attribute == 8 || (attribute == 14 && value == 1), "attribute %d = %d", attribute, value);
    if (attribute == 14) f->clusters_allowed = 1;
    else if (f->kernel->static_shared + value > 227 * 1024) return INVALID_VALUE;
    else f->shared_allowed = value;
    return OK;
}
int cuFuncGetParamInfo(object *function, size_t index, size_t *offset, size_t *bytes) {
    LOCKED;
    CURRENT;
    const kernel *k = find(FUNCTION, function)->kernel;
    if (index >= (size_t)k->params) return INVALID_VALUE;
    *offset = 0, *bytes = k->sizes[index];
    return OK;
}
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, object *function, int threads, size_t shared) {
    LOCKED;
    CURRENT;
    object *f = find(FUNCTION, function);
    const int all = f->kernel->static_shared + (int)shared;
    RULE(all <= 48 * 1024 || f->shared_allowed >= (int)shared, "%d bytes were not asked for", all);
    const int by_threads = 2048 / threads, by_shared = 228 * 1024 / (all + 1024);
    *blocks = by_threads < by_shared ? by_threads : by_shared;
    return OK;
}

typedef struct attribute { int id; char pad[4]; union { char pad[64]; unsigned words[16]; } value; } attribute;
typedef struct config { unsigned grid[3], block[3], shared; object *stream; attribute *attributes; unsigned count; } config;

int cuLaunchKernelEx(const config *c, object *function, void **params, void **extra) {
    LOCKED;
    CURRENT;
    object *f = find(FUNCTION, function);
    const kernel *k = f->kernel;
    RULE(find(STREAM, c->stream)->device == device && f->device == device, "stream or kernel of another context");
    RULE(!extra, "extra");
    const uint64_t threads = (uint64_t)c->block[0] * c->block[1] * c->block[2];
    if (!threads || threads > (unsigned)k->max_threads || !c->grid[0] || !c->grid[1] || !c->grid[2]) return INVALID_VALUE;
    if (k->static_shared + c->shared > 48 * 1024 && f->shared_allowed < (int)c->shared) return INVALID_VALUE;
    unsigned cluster = k->cluster ? k->cluster : 1;
    for (unsigned i = 0; i < c->count; ++i) {
        const attribute *a = &c->attributes[i];
        if (a->id == 4) {
            RULE(!k->cluster, "the kernel has a cluster of its own");
            RULE(a->value.words[1] == 1 && a->value.words[2] == 1, "cluster");
            cluster = a->value.words[0];
            ++clusters;
        } else if (a->id == 2) {
            RULE(a->value.words[0] == 1, "cooperative");
            int most;
            const int result = cuOccupancyMaxActiveBlocksPerMultiprocessor(&most, function, (int)threads, c->shared);
            if (result != OK) return result;
            if ((uint64_t)c->grid[0] * c->grid[1] * c->grid[2] > (uint64_t)most * 132) return TOO_LARGE;
        } else {
            RULE(a->id == 6 && a->value.words[0] == 1, "attribute %d", a->id);
            ++programmatic;
        }
    }
    if (cluster > 8 && !f->clusters_allowed) return INVALID_CLUSTER;
    if (c->grid[0] % cluster) return INVALID_CLUSTER;
    for (int i = 0; i < k->params; ++i) RULE((ptr)params[i] % 64 == 0, "argument %d lies at %p", i, params[i]);
    ++launches;
    /* A failure shows in the calls that come next. */
    failed[device] = k->run(device, f->module, params, c->grid, c->block, c->shared, cluster);
    return OK;
}

int cuTensorMapEncodeTiled(uint64_t *map, int type, unsigned rank, ptr address, const uint64_t *dims, const uint64_t *strides,
                           const unsigned *box, const unsigned *element_strides, int interleave, int swizzle, int promotion, int fill) {
    RULE((ptr)map % 64 == 0 && interleave == 0, "the map lies at %p", (void *)map);
    if (rank < 1 || rank > 5 || address % 16) return INVALID_VALUE;
    memset(map, 0, 128);
    map[0] = address, map[1] = type | rank << 8 | swizzle << 16 | promotion << 24 | (uint64_t)fill << 32;
    for (unsigned i = 0; i < rank; ++i) {
        if (!dims[i] || !box[i] || box[i] > 256 || !element_strides[i] || (i + 1 < rank && strides[i] % 16)) return INVALID_VALUE;
        map[2 + i] = dims[i] ^ (uint64_t)box[i] << 40 ^ (uint64_t)element_strides[i] << 56;
        if (i + 1 < rank) map[7 + i] = strides[i];
    }
    ++tensor_maps;
    return OK;
}

/* ---- finding functions ---- */

#define BY(name) {#name, (void *)name}
#define AS(name, function) {#name, (void *)function}
static const struct { const char *name; void *function; } functions[] = {
    BY(cuInit), BY(cuDriverGetVersion), BY(cuGetErrorName), BY(cuGetErrorString), BY(cuDeviceGetCount), BY(cuDeviceGet), BY(cuDeviceGetName),
    AS(cuDeviceTotalMem, cuDeviceTotalMem_v2), BY(cuDeviceGetAttribute), BY(cuDevicePrimaryCtxRetain),
    AS(cuDevicePrimaryCtxRelease, cuDevicePrimaryCtxRelease_v2), BY(cuCtxGetCurrent), BY(cuCtxSetCurrent), AS(cuCtxPushCurrent, cuCtxPushCurrent_v2),
    AS(cuCtxPopCurrent, cuCtxPopCurrent_v2), BY(cuCtxSynchronize), BY(cuDeviceCanAccessPeer), BY(cuCtxEnablePeerAccess), AS(cuMemAlloc, cuMemAlloc_v2),
    AS(cuMemFree, cuMemFree_v2), BY(cuMemAllocAsync), BY(cuMemFreeAsync), BY(cuDeviceGetDefaultMemPool), BY(cuMemPoolSetAttribute),
    BY(cuMemPoolSetAccess), BY(cuMemHostAlloc), AS(cuMemHostGetDevicePointer, cuMemHostGetDevicePointer_v2), BY(cuMemFreeHost),
    AS(cuMemcpyHtoDAsync, cuMemcpyHtoDAsync_v2), AS(cuMemcpyDtoHAsync, cuMemcpyDtoHAsync_v2), BY(cuMemcpyAsync), BY(cuMemsetD8Async),
    BY(cuStreamSynchronize), BY(cuStreamQuery), BY(cuStreamWaitEvent), BY(cuEventCreate), AS(cuEventDestroy, cuEventDestroy_v2), BY(cuEventRecord),
    BY(cuEventSynchronize), BY(cuEventQuery), BY(cuEventElapsedTime), BY(cuModuleLoadDataEx), BY(cuModuleUnload), BY(cuModuleGetFunction),
    AS(cuModuleGetGlobal, cuModuleGetGlobal_v2), BY(cuFuncGetAttribute), BY(cuFuncSetAttribute), BY(cuFuncGetParamInfo),
    BY(cuOccupancyMaxActiveBlocksPerMultiprocessor), BY(cuLaunchKernelEx), BY(cuTensorMapEncodeTiled),
};

int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *found) {
    RULE(version >= 2000 && version <= 13000 && flags == 0, "version %d, flags %lu", version, (long)flags);
    *function = NULL, *found = 1;
    if (old() && version > 12000) return *found = 2, OK;
    for (size_t i = 0; i < sizeof functions / sizeof functions[0]; ++i)
        if (!strcmp(functions[i].name, name)) *function = functions[i].function, *found = 0;
    return OK;
}

__attribute__((destructor)) static void end(void) {
    /* A context that has failed frees nothing any more. */
    for (object *o = objects; o; o = o->next) {
        if (failed[o->device]) continue;
        fprintf(stderr, "STAND-IN: a %s was not given back\n", kinds[o->kind]);
        _exit(3);
    }
    for (int i = 0; i < 2; ++i)
        if (contexts[i].users) { fprintf(stderr, "STAND-IN: context %d is held %d times\n", i, contexts[i].users); _exit(3); }
    fprintf(stderr, "STAND-IN: launches %ld, programmatic %ld, clusters %ld, tensor maps %ld, pools kept %d\n", launches, programmatic, clusters,
            tensor_maps, pool_kept[0]);
}
