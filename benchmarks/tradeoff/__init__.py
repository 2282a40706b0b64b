"""The paper's Table 5 and Figure 1, measured on this machine."""
