"""Two machine instructions that numba has no name for, emitted through LLVM: no compiler is needed where they run."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

Int = int | np.integer[Any]  # an integer inside a kernel: numba tells the widths apart, Python does not

if TYPE_CHECKING:
    # What kernels call; the functions below are what numba calls to compile that.
    def prefetch(array: Any, item: Int) -> None:
        """Start to load array[item] into all levels of cache."""

    def float_of_bits(bits: Int) -> np.float32:
        """The float32 that has these 32 bits."""

else:

    @intrinsic
    def prefetch(typingctx, array, item):
        """Start to load array[item] into all levels of cache."""
        from llvmlite import ir

        def codegen(context, builder, signature, args):
            data = cgutils.create_struct_proxy(signature.args[0])(context, builder, value=args[0]).data
            i32, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
            address = builder.bitcast(builder.gep(data, [args[1]]), pointer)
            kind = ir.FunctionType(ir.VoidType(), [pointer, i32, i32, i32])
            fn = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
            builder.call(fn, [address, i32(0), i32(3), i32(1)])  # to read, into all levels, data
            return context.get_dummy_value()

        return types.none(array, types.int64), codegen

    @intrinsic
    def float_of_bits(typingctx, bits):
        """The float32 that has these 32 bits."""

        def codegen(context, builder, signature, args):
            return builder.bitcast(args[0], context.get_value_type(types.float32))

        return types.float32(types.uint32), codegen
