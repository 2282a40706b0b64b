"""What the Triton kernels become in machine code and what they move, without a GPU: a report, a budget and a page."""
