// The Python module `_cpu`: chooses the instruction set and hands plain addresses to the kernels, the GIL released.
// Its one caller, ops.py, has checked every type, shape and size.
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#if !defined(_WIN32)
#include <pthread.h>
#endif

#include "bandwidth.h"
#include "kernels.h"
#include "model.h"

#if TWOFOUR_X86
static const Kernels *const KNOWN[] = {&avx512bf16_kernels, &avx512_kernels, &avx2_kernels};  // best first
enum { KNOWN_COUNT = 3 };

static int supported(const Kernels *kernels) {
  __builtin_cpu_init();
  int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (kernels == &avx2_kernels) return avx2;
  if (kernels == &avx512_kernels) return avx512;
  return avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi") &&
         __builtin_cpu_supports("avx512vnni");
}
#else
static const Kernels *const KNOWN[1];
enum { KNOWN_COUNT = 0 };
static int supported(const Kernels *kernels) { return kernels != NULL; }
#endif

static const Kernels *chosen;  // null: none
static int forked;             // libgomp's threads do not survive a fork; waiting for them would never end

static void after_fork_in_child(void) { forked = 1; }

static const Kernels *best(void) {
  for (int i = 0; i < KNOWN_COUNT; i++)
    if (supported(KNOWN[i])) return KNOWN[i];
  return NULL;
}

// ---- arguments: all are integers

static int read_integers(PyObject *const *arguments, Py_ssize_t count, Py_ssize_t expected, long long *to) {
  if (count != expected) {
    PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", expected, count);
    return -1;
  }
  for (Py_ssize_t i = 0; i < count; i++) {
    to[i] = PyLong_AsLongLong(arguments[i]);
    if (to[i] == -1 && PyErr_Occurred()) return -1;
  }
  return 0;
}

static void *address(long long value) { return (void *)(uintptr_t)value; }

static int threads_for(long long wanted) { return forked || wanted < 1 ? 1 : (int)wanted; }

static PyObject *no_kernel(void) {
  PyErr_SetString(PyExc_RuntimeError, "this machine has no CPU kernel");
  return NULL;
}

// ---- the functions

static PyObject *layout_bytes_of(PyObject *module, PyObject *const *arguments, Py_ssize_t count) {
  long long a[3];
  if (read_integers(arguments, count, 3, a)) return NULL;
  return PyLong_FromSize_t(layout_bytes((int)a[0], (long)a[1], (long)a[2]));
}

static PyObject *pack(PyObject *module, PyObject *const *arguments, Py_ssize_t count) {
  long long a[9];
  if (read_integers(arguments, count, 9, a)) return NULL;
  Canonical from = {address(a[1]), address(a[2]), address(a[3]), (long)a[4], (long)a[6], (long)a[7]};
  Py_BEGIN_ALLOW_THREADS
  pack_layout((int)a[0], &from, address(a[5]), threads_for(a[8]));
  Py_END_ALLOW_THREADS
  Py_RETURN_NONE;
}

static PyObject *unpack(PyObject *module, PyObject *const *arguments, Py_ssize_t count) {
  long long a[9];
  if (read_integers(arguments, count, 9, a)) return NULL;
  CanonicalTo to = {address(a[2]), address(a[3]), address(a[4]), (long)a[5], (long)a[6], (long)a[7]};
  Py_BEGIN_ALLOW_THREADS
  unpack_layout((int)a[0], address(a[1]), &to, threads_for(a[8]));
  Py_END_ALLOW_THREADS
  Py_RETURN_NONE;
}

static PyObject *expand(PyObject *module, PyObject *const *arguments, Py_ssize_t count) {
  long long a[9];
  if (read_integers(arguments, count, 9, a)) return NULL;
  Expansion job = {(int)a[0], address(a[1]), address(a[2]), (long)a[3], (long)a[4],
                   (long)a[5], (long)a[6], (int)a[7], threads_for(a[8])};
  const Kernels *kernels = chosen;
  Py_BEGIN_ALLOW_THREADS
  if (kernels)
    kernels->expand(&job);
  else
    expand_portably(&job);
  Py_END_ALLOW_THREADS
  Py_RETURN_NONE;
}

static PyObject *multiply(PyObject *module, PyObject *const *arguments, Py_ssize_t count) {
  long long a[10];
  if (read_integers(arguments, count, 10, a)) return NULL;
  const Kernels *kernels = chosen;
  if (!kernels) return no_kernel();
  Weight weight = {(long)a[0], address(a[1]), (long)a[6], (long)a[7]};
  Product job = {weight, address(a[2]), address(a[3]), address(a[4]), (long)a[5], (int)a[8], threads_for(a[9])};
  int failed;
  Py_BEGIN_ALLOW_THREADS
  failed = job.is_float32 ? kernels->multiply_f32(&job) : kernels->multiply_bf16(&job);
  Py_END_ALLOW_THREADS
  if (failed) return PyErr_NoMemory();
  Py_RETURN_NONE;
}

static PyObject *draw(PyObject *module, PyObject *const *arguments, Py_ssize_t count) {
  long long a[7];
  if (read_integers(arguments, count, 7, a)) return NULL;
  const Kernels *kernels = chosen;
  if (!kernels) return no_kernel();
  Draws job = {address(a[0]), (long)a[1], (int)a[2], address(a[3]), (long)a[4], address(a[5]), threads_for(a[6])};
  int failed;
  Py_BEGIN_ALLOW_THREADS
  failed = kernels->draw(&job);
  Py_END_ALLOW_THREADS
  if (failed) return PyErr_NoMemory();
  Py_RETURN_NONE;
}

static PyObject *score(PyObject *module, PyObject *const *arguments, Py_ssize_t count) {
  long long a[10];
  if (read_integers(arguments, count, 10, a)) return NULL;
  const Kernels *kernels = chosen;
  if (!kernels) return no_kernel();
  Scores job = {address(a[0]), (long)a[1],    (int)a[2],     address(a[3]), (long)a[4],
                (long)a[5],    address(a[6]), address(a[7]), address(a[8]), threads_for(a[9])};
  int failed;
  Py_BEGIN_ALLOW_THREADS
  failed = kernels->score(&job);
  Py_END_ALLOW_THREADS
  if (failed) return PyErr_NoMemory();
  Py_RETURN_NONE;
}

static PyObject *workspace(PyObject *module, PyObject *const *arguments, Py_ssize_t count) {
  long long a[2];
  if (read_integers(arguments, count, 2, a)) return NULL;
  return PyLong_FromSize_t(workspace_bytes(address(a[0]), (long)a[1]));
}

static PyObject *step(PyObject *module, PyObject *const *arguments, Py_ssize_t count) {
  long long a[11];
  if (read_integers(arguments, count, 11, a)) return NULL;
  const Kernels *kernels = chosen;
  if (!kernels) return no_kernel();
  const Model *model = address(a[0]);
  Step job = {(long)a[1], (long)a[2], (long)a[3], address(a[4]), address(a[5]), address(a[6]),
              address(a[7]), address(a[8]), address(a[9]), threads_for(a[10])};
  enum StepFault fault;
  Py_BEGIN_ALLOW_THREADS
  fault = check_step(model, &job);
  if (!fault) kernels->run_step(model, &job);
  Py_END_ALLOW_THREADS
  return PyLong_FromLong(fault);
}

static PyObject *attend(PyObject *module, PyObject *const *arguments, Py_ssize_t count) {
  long long a[1];
  if (read_integers(arguments, count, 1, a)) return NULL;
  const Kernels *kernels = chosen;
  if (!kernels) return no_kernel();
  LayerAttention job = *(const LayerAttention *)address(a[0]);
  job.threads = threads_for(job.threads);
  enum StepFault fault;
  Py_BEGIN_ALLOW_THREADS
  fault = check_layer_attention(&job);
  if (!fault) kernels->attend_layer(&job);
  Py_END_ALLOW_THREADS
  return PyLong_FromLong(fault);
}

static PyObject *read_bytes(PyObject *module, PyObject *const *arguments, Py_ssize_t count) {
  long long a[4];
  if (read_integers(arguments, count, 4, a)) return NULL;
  uint64_t all;
  Py_BEGIN_ALLOW_THREADS
  all = read_memory(address(a[0]), (size_t)a[1], (size_t)a[2], threads_for(a[3]));
  Py_END_ALLOW_THREADS
  return PyLong_FromUnsignedLongLong(all);
}

static PyObject *isa(PyObject *module, PyObject *nothing) {
  return PyUnicode_FromString(chosen ? chosen->name : "none");
}

static PyObject *isas(PyObject *module, PyObject *nothing) {
  PyObject *names = PyList_New(0);
  for (int i = 0; names && i < KNOWN_COUNT; i++) {
    if (!supported(KNOWN[i])) continue;
    PyObject *name = PyUnicode_FromString(KNOWN[i]->name);
    if (!name || PyList_Append(names, name)) Py_CLEAR(names);
    Py_XDECREF(name);
  }
  return names;
}

static PyObject *force(PyObject *module, PyObject *wanted) {
  for (int i = 0; i < KNOWN_COUNT; i++)
    if (supported(KNOWN[i]) && PyUnicode_CompareWithASCIIString(wanted, KNOWN[i]->name) == 0) {
      chosen = KNOWN[i];
      Py_RETURN_NONE;
    }
  PyErr_Format(PyExc_ValueError, "this machine has no instruction set %R", wanted);
  return NULL;
}

static PyObject *is_forked(PyObject *module, PyObject *nothing) { return PyBool_FromLong(forked); }

#define FAST(function) (PyCFunction)(void (*)(void))(function), METH_FASTCALL
static PyMethodDef METHODS[] = {
    {"layout_bytes", FAST(layout_bytes_of), "layout_bytes(kind, rows, columns) -> int"},
    {"pack", FAST(pack), "pack(kind, values, positions, scales, scales_per_row, to, rows, columns, threads)"},
    {"unpack", FAST(unpack),
     "unpack(kind, weight, values, positions, scales, scales_per_row, rows, columns, threads)"},
    {"expand", FAST(expand), "expand(kind, weight, to, rows, columns, first_row, end_row, is_float32, threads)"},
    {"multiply", FAST(multiply), "multiply(kind, weight, x, bias, y, tokens, rows, columns, is_float32, threads)"},
    {"draw", FAST(draw), "draw(logits, vocabulary, is_float32, draws, count, ids, threads)"},
    {"score", FAST(score),
     "score(logits, vocabulary, is_float32, tokens, count, top, logprobs, top_ids, top_logprobs, threads)"},
    {"workspace_bytes", FAST(workspace), "workspace_bytes(model, threads) -> int"},
    {"step", FAST(step),
     "step(model, token_count, chunk_count, wanted_count, tokens, chunks, wanted, logits, best, workspace, "
     "threads) -> what is wrong with it, else 0"},
    {"attend", FAST(attend), "attend(layer_attention) -> what is wrong with it, else 0"},
    {"read_memory", FAST(read_bytes), "read_memory(address, bytes, ahead, threads) -> the exclusive or of its words"},
    {"isa", isa, METH_NOARGS, "The instruction set in use, or 'none'."},
    {"isas", isas, METH_NOARGS, "The instruction sets that this machine has, best first."},
    {"force", force, METH_O, "Use this instruction set from now on. For tests and bisecting."},
    {"is_forked", is_forked, METH_NOARGS, "True in the child of a fork: everything runs serially there."},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_cpu", NULL, -1, METHODS, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__cpu(void) {
  chosen = best();
#if !defined(_WIN32)
  pthread_atfork(NULL, NULL, after_fork_in_child);
#endif
  return PyModule_Create(&MODULE);
}
