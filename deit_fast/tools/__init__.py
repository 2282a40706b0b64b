"""What reads a run or a model: evaluate, predict, export, compare, report, repeat. The core never imports it."""
