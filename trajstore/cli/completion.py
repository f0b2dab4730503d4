"""Print a script that completes the commands and options of a console script in a shell."""

import contextlib
import io
import re
from collections.abc import Callable, Mapping
from typing import Final

SCRIPT: Final = """\
# Completion of {prog} for bash and zsh.
[ -z "$ZSH_VERSION" ] || {{ autoload -U +X compinit bashcompinit && compinit && bashcompinit; }}
{function}() {{
    local words=""
    local current="${{COMP_WORDS[COMP_CWORD]}}"
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{commands}"
    elif [ "${{current#-}}" != "$current" ]; then
        case "${{COMP_WORDS[1]}}" in
{cases}
        esac
    fi
    # Without words, the shell completes names of files.
    [ -z "$words" ] || COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F {function} {prog}
"""

OPTION: Final = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")


def completion_script(prog: str, commands: Mapping[str, Callable[[], None]]) -> str:
    """Return the script, given functions that print the help of each command."""
    options = {name: " ".join(_options(show)) for name, show in commands.items()}
    return SCRIPT.format(
        prog=prog,
        function="_" + prog.replace("-", "_"),
        commands=" ".join([*commands, "--help", "--version", "--completion"]),
        cases="\n".join(
            f'            {name}) words="{words}" ;;' for name, words in options.items()
        ),
    )


def _options(show: Callable[[], None]) -> list[str]:
    """Return the options that a help names, in its order."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        show()
    return list(dict.fromkeys(OPTION.findall(text.getvalue())))
