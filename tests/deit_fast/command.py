"""A configuration as a command."""

from deit_fast.config import Config


def command_line(config: Config) -> list[str]:
    """The flags that give this configuration."""
    default = Config().flat()
    arguments = ["--recipe", config.recipe]
    for name, value in config.flat().items():
        if name != "recipe" and (
            value != default[name]
            or name in ("distill", "teacher", "repeats", "drop_path", "rand_augment", "erase", "mixup", "cutmix")
        ):
            values = value if isinstance(value, tuple) else [value]
            flag = "--" + name.replace("_", "-")
            if isinstance(value, bool):
                arguments.append(flag if value else flag.replace("--", "--no-", 1))
            else:
                arguments += [flag, *map(str, values)]
    return arguments
