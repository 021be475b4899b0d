// libcuda_stub.cpp with what libcufile needs of a driver beside that. It looks up two hundred other
// functions and calls none of them: names.py makes those, each weak.

#include "../libcuda_stub.cpp"

static const int ORDINAL = 0;

static CUresult copy(CUdeviceptr device, void *to, const void *from, size_t size) {
    if (!inside(allocations, device, size)) return CUDA_ERROR_INVALID_VALUE;
    return memcpy(to, from, size), CUDA_SUCCESS;
}

extern "C" {

CUresult cuCtxGetCurrent(CUcontext *current) {
    return *current = (CUcontext)&context, CUDA_SUCCESS;
}

CUresult cuCtxPushCurrent(CUcontext current) { return cuCtxSetCurrent(current); }
CUresult cuCtxPopCurrent(CUcontext *current) { return cuCtxGetCurrent(current); }

CUresult cuCtxGetDevice(CUdevice *device) { return cuDeviceGet(device, ORDINAL); }

CUresult cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    return *least = *greatest = 0, CUDA_SUCCESS;
}

CUresult cuStreamCreateWithPriority(CUstream *stream, unsigned flags, int) {
    return cuStreamCreate(stream, flags);
}

CUresult cuStreamDestroy(CUstream stream) { return delete (char *)stream, CUDA_SUCCESS; }

CUresult cuMemHostUnregister(void *address) {
    std::lock_guard<std::mutex> hold(lock);
    return pinned.erase((CUdeviceptr)address) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuPointerGetAttribute(void *data, CUpointer_attribute which, CUdeviceptr address) {
    if (!inside(allocations, address, 1)) return CUDA_ERROR_INVALID_VALUE;
    switch (which) {
        case CU_POINTER_ATTRIBUTE_CONTEXT: *(CUcontext *)data = (CUcontext)&context; break;
        case CU_POINTER_ATTRIBUTE_MEMORY_TYPE: *(unsigned *)data = CU_MEMORYTYPE_DEVICE; break;
        case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: *(CUdeviceptr *)data = address; break;
        case CU_POINTER_ATTRIBUTE_BUFFER_ID: *(u64 *)data = address >> 12; break;
        case CU_POINTER_ATTRIBUTE_IS_MANAGED: *(unsigned *)data = 0; break;
        case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: *(int *)data = ORDINAL; break;
        default: return CUDA_ERROR_NOT_SUPPORTED;
    }
    return CUDA_SUCCESS;
}

CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void *from, size_t size, CUstream) {
    return copy(to, (void *)to, from, size);
}

CUresult cuMemcpyDtoHAsync(void *to, CUdeviceptr from, size_t size, CUstream) {
    return copy(from, to, (const void *)from, size);
}

}  // extern "C"
