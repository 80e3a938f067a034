"""The expansion of packed 2:4 groups to dense, as PTX: plain text, so that it can be checked without a GPU.

PRMT (byte permute) reads two 32-bit sources as a table of eight bytes and looks four of them up at once.
"""

# $0..$3 are (d0, d1) of the four groups whose words are $8..$11, $4..$7 their (d2, d3); $12 holds the four codes.
# A code looks up one selector byte per dense position: 0x10 the first kept value, 0x32 the second, 0x44 zero.
EXPAND = """{
.reg .b32 first, second, third, fourth, low02, low13, high02, high13, low1, low3, high1, high3;
prmt.b32 first, 0x44101010, 0x44444444, $12;
prmt.b32 second, 0x10444432, 0x44444410, $12;
prmt.b32 third, 0x32443244, 0x44441044, $12;
prmt.b32 fourth, 0x44324444, 0x44443232, $12;
prmt.b32 low02, first, second, 0x5140;
prmt.b32 low13, first, second, 0x7362;
prmt.b32 high02, third, fourth, 0x5140;
prmt.b32 high13, third, fourth, 0x7362;
shr.u32 low1, low02, 16;
shr.u32 low3, low13, 16;
shr.u32 high1, high02, 16;
shr.u32 high3, high13, 16;
prmt.b32 $0, $8, 0, low02;
prmt.b32 $1, $9, 0, low1;
prmt.b32 $2, $10, 0, low13;
prmt.b32 $3, $11, 0, low3;
prmt.b32 $4, $8, 0, high02;
prmt.b32 $5, $9, 0, high1;
prmt.b32 $6, $10, 0, high13;
prmt.b32 $7, $11, 0, high3;
}"""
