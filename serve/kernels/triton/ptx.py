"""The expansion of packed 2:4 groups to dense, as PTX: plain text, so that it can be checked without a GPU.

PRMT (byte permute) reads two 32-bit sources as a table of eight bytes and looks four of them up at once. A constant
may be its second source but not its first, which costs a register or a move: the codes are numbered so that the
first source is zero for position 0, which only codes from 4 on keep. The codes 0 and 7 keep nothing.
"""

# $0..$3 are (d0, d1) of the four groups whose words are $8..$11, $4..$7 their (d2, d3); $12 holds the four codes.
# A code looks up one selector byte per dense position: 0x54 the first kept value, 0x76 the second, 0x00 zero.
EXPAND = """{
.reg .b32 first, second, third, fourth, low02, low13, high02, high13, low1, low3, high1, high3;
prmt.b32 first, 0, 0x00545454, $12;
prmt.b32 second, 0x00545400, 0x00000076, $12;
prmt.b32 third, 0x54007600, 0x00007600, $12;
prmt.b32 fourth, 0x76760000, 0x00760000, $12;
prmt.b32 low02, first, second, 0x5140;
prmt.b32 low13, first, second, 0x7362;
prmt.b32 high02, third, fourth, 0x5140;
prmt.b32 high13, third, fourth, 0x7362;
shr.u32 low1, low02, 16;
shr.u32 low3, low13, 16;
shr.u32 high1, high02, 16;
shr.u32 high3, high13, 16;
prmt.b32 $0, 0, $8, low02;
prmt.b32 $1, 0, $9, low1;
prmt.b32 $2, 0, $10, low13;
prmt.b32 $3, 0, $11, low3;
prmt.b32 $4, 0, $8, high02;
prmt.b32 $5, 0, $9, high1;
prmt.b32 $6, 0, $10, high13;
prmt.b32 $7, 0, $11, high3;
}"""
