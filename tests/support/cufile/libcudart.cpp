// What NIXL's GDS plugins call of libcudart.so.12. The real one does not run over a stub of libcuda.

extern "C" {

int cudaSetDevice(int device) { return device ? 101 : 0; }
const char *cudaGetErrorString(int) { return "the stub has one device"; }
}
