"""A few machine instructions that numba has no name for, emitted through LLVM: no compiler is needed where they run.

The two that look at a whole cache line are written as vector code of eight and sixteen lanes; LLVM makes of it what the
machine at hand has, from one AVX-512 comparison to a few of NEON.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

_P = ParamSpec("_P")
_R = TypeVar("_R")

Int = int | np.integer[Any]  # an integer inside a kernel: numba tells the widths apart, Python does not


def leaf(kernel: Callable[_P, _R]) -> Callable[_P, _R]:
    """Compile a kernel that is called per key and makes no array and no slice.

    numba counts a reference to each array argument at every such call, unless it can prove that it need not, and it
    seldom can where there are two ways out: six locked additions, which made an insert take 45 ns, not 12. Without its
    memory manager (`_nrt`), which a kernel that makes no array does not need, it counts nothing. Inlined, because each
    array is seven words of arguments.
    """
    compiled: Callable[_P, _R] = njit(cache=True, nogil=True, _nrt=False, forceinline=True)(kernel)  # type: ignore[call-overload]
    return compiled


if TYPE_CHECKING:
    # What kernels call; the functions below are what numba calls to compile that.
    def prefetch(array: Any, item: Int) -> None:
        """Start to load array[item] into all levels of cache."""

    def float_of_bits(bits: Int) -> np.float32:
        """The float32 that has these 32 bits."""

    def lanes_equal(words: Any, item: Int, key: Int) -> np.uint64:
        """Bit i is set where words[item + i] == key, i < 8: one aligned cache line of int64."""

    def lanes_filled(cells: Any, item: Int) -> np.uint64:
        """Bit i is set where cells[item + i] != 0, i < 16: one aligned cache line of int32."""

    def lowest_bit(bits: np.uint64) -> np.uint64:
        """Number of the lowest set bit; 64 where there is none."""

    def copy_line(target: Any, to: Int, source: Any, at: Int) -> None:
        """target[to : to + 16] = source[at : at + 16], float32, without a look at whether the two overlap."""

    def stream_line(target: Any, to: Int, source: Any, at: Int) -> None:
        """`copy_line` past the caches; target[to] is at a multiple of 16 bytes, and `settle` follows the last one."""

    def settle() -> None:
        """Whatever this thread has written, others see before anything that it writes from now on."""

else:

    def _at(context, builder, array, args):
        """Address of item args[1] in array args[0], whose type is `array`."""
        data = cgutils.create_struct_proxy(array)(context, builder, value=args[0]).data
        return builder.gep(data, [args[1]])

    def _line(context, builder, signature, args, bits):
        """The aligned cache line at args[0][args[1]], as a vector."""
        from llvmlite import ir

        vector = ir.VectorType(ir.IntType(bits), 512 // bits)
        line = builder.load(builder.bitcast(_at(context, builder, signature.args[0], args), vector.as_pointer()))
        line.align = 64
        return line

    def _mask(builder, sign, line, other):
        """A bit for each lane in which the comparison holds, as uint64."""
        from llvmlite import ir

        lanes = ir.IntType(line.type.count)
        return builder.zext(builder.bitcast(builder.icmp_signed(sign, line, other), lanes), ir.IntType(64))

    @intrinsic
    def prefetch(typingctx, array, item):
        """Start to load array[item] into all levels of cache."""
        from llvmlite import ir

        def codegen(context, builder, signature, args):
            i32, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
            address = builder.bitcast(_at(context, builder, signature.args[0], args), pointer)
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

    @intrinsic
    def lanes_equal(typingctx, words, item, key):
        """Bit i is set where words[item + i] == key."""
        from llvmlite import ir

        def codegen(context, builder, signature, args):
            line = _line(context, builder, signature, args, 64)
            undefined = ir.Constant(line.type, ir.Undefined)
            first = builder.insert_element(undefined, args[2], ir.IntType(32)(0))
            every = builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), 8), [0] * 8))
            return _mask(builder, "==", line, every)

        return types.uint64(words, types.int64, types.int64), codegen

    @intrinsic
    def lanes_filled(typingctx, cells, item):
        """Bit i is set where cells[item + i] != 0."""
        from llvmlite import ir

        def codegen(context, builder, signature, args):
            line = _line(context, builder, signature, args, 32)
            return _mask(builder, "!=", line, ir.Constant(line.type, [0] * 16))

        return types.uint64(cells, types.int64), codegen

    @intrinsic
    def lowest_bit(typingctx, bits):
        """Number of the lowest set bit; 64 where there is none."""
        from llvmlite import ir

        def codegen(context, builder, signature, args):
            i64, i1 = ir.IntType(64), ir.IntType(1)
            fn = builder.module.declare_intrinsic("llvm.cttz", [i64], ir.FunctionType(i64, [i64, i1]))
            return builder.call(fn, [args[0], i1(0)])

        return types.uint64(types.uint64), codegen

    def _copy_sixteen(context, builder, signature, args, align):
        """The store of args[0][args[1] : args[1] + 16] = args[2][args[3] : args[3] + 16]."""
        from llvmlite import ir

        line = ir.VectorType(ir.FloatType(), 16).as_pointer()
        read = builder.load(builder.bitcast(_at(context, builder, signature.args[2], args[2:]), line))
        read.align = 4
        target = builder.bitcast(_at(context, builder, signature.args[0], args[:2]), line)
        return builder.store(read, target, align=align)

    @intrinsic
    def copy_line(typingctx, target, to, source, at):
        """target[to : to + 16] = source[at : at + 16]."""

        def codegen(context, builder, signature, args):
            _copy_sixteen(context, builder, signature, args, 4)
            return context.get_dummy_value()

        return types.none(target, types.int64, source, types.int64), codegen

    @intrinsic
    def stream_line(typingctx, target, to, source, at):
        """target[to : to + 16] = source[at : at + 16], past the caches."""
        from llvmlite import ir

        def codegen(context, builder, signature, args):
            store = _copy_sixteen(context, builder, signature, args, 16)
            store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
            return context.get_dummy_value()

        return types.none(target, types.int64, source, types.int64), codegen

    @intrinsic
    def settle(typingctx):
        """A fence: stores past the caches are not ordered with others by themselves."""

        def codegen(context, builder, signature, args):
            builder.fence("seq_cst")
            return context.get_dummy_value()

        return types.none(), codegen
