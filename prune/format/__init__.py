"""How a 2:4 weight is stored, and the folder that holds a model.

In come weights [out, in] or a folder of safetensors; out go the same weights packed, and folders that are whole or not
there at all. Read `pattern` (the 2:4 rule), `packed` (values and positions), `rounding` (int8 values), `dense_int8`
(those of weights that stay dense), `schemes` (how one linear is stored, and its bytes), `weights` (a folder read tensor
by tensor), `quantization` (what config.json says of it), `head` (lm_head in int8), `checkpoint` (a folder written),
then `folder` and `origin` (where models lie and come from). `bitmask` reads what other tools packed.
"""

from typing import Literal

Format = Literal["packed", "dense"]
