"""What 2:4 lost, won back: kept weights trained against the dense model, their zeros fixed.

In come pruned linears and the text; out come better values for the weights that were kept. Read `kept` (the trained
weights), `optimiser` (Adam over those of one linear, in two sizes) with `eight_bit` (its moments in 8 bits), `training`
(the loop), then what they are trained to: `blocks` (the outputs of a dense block, one block after the other, inside the
walk), `distil` (the predictions of the dense model, all blocks together), `stream` (the same, on text without end) with
`dense` (the dense weights, in place for a while).

Only kept weights of pruned linears learn. The gain of a norm in front of a linear only scales its columns, which kept
weights can do themselves; everything outside the linears stays as it is, to the bit.
"""
