// SPDX-License-Identifier: Apache-2.0

#include "textflag.h"

// func int80(number, a, b, c, d, e, f uint32) int32
//
// The frame is not empty so that the assembler saves BP, which carries the sixth argument.
TEXT ·int80(SB), NOSPLIT, $8-36
	MOVL number+0(FP), AX
	MOVL a+4(FP), BX
	MOVL b+8(FP), CX
	MOVL c+12(FP), DX
	MOVL d+16(FP), SI
	MOVL e+20(FP), DI
	MOVL f+24(FP), R12
	MOVL R12, BP
	INT  $0x80
	MOVL AX, ret+32(FP)
	RET
