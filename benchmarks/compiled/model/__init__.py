"""How long a compiled kernel can take on a card that is not here: SASS, pipes, a replay, and a prediction from them."""
