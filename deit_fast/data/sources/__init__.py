"""Where images lie: class folders, tar shards, parquet, ImageNet, CIFAR, and what is built in."""
