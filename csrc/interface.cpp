// The interface to Python that a binary was built for. deit_kernels/_extension.py finds it in the file before loading it:
// a loaded library has registered its ops for good. setup.py passes the number.
#define TEXT(number) #number
#define TEXT_OF(macro) TEXT(macro)

extern "C" __attribute__((used, visibility("hidden"))) const char deit_interface[] =
    "deit_kernels interface " TEXT_OF(DEIT_INTERFACE) ";";
