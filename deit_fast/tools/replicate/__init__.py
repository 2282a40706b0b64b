"""The paper's Tables 3 and 2 at a scale that runs anywhere, over several seeds."""
