"""What a compiled program does, read off its text."""

import re

import jax

# Custom calls of LAPACK and BLAS, which take threads of the pool they run in.
_CALLS = re.compile(r'custom_call_target="(lapack|blas)_')
_CALLED = re.compile(r"(?:body|condition|calls|to_apply|branch_computations=\{?)=?%([\w.\-]+)")
_NAME = re.compile(r"(?:ROOT )?%([\w.\-]+) = (.*)")


def computations(text):
    """Names of the computations of an HLO module, with their instructions."""
    found, current = {}, None
    for line in text.splitlines():
        start = re.match(r"(?:ENTRY )?%([\w.\-]+) .*\{$", line)
        if start:
            current = found.setdefault(start.group(1), [])
        elif current is not None and " = " in line:
            name, rest = _NAME.match(line.strip()).groups()
            current.append((name, rest))
    return found


def unordered_decompositions(function, *arguments):
    """Pairs of decompositions of one program neither of which waits for the other.

    Loops and other computations that hold a decomposition count as one.
    """
    parts = computations(jax.jit(function).lower(*arguments).compile().as_text())
    heavy = {name for name, lines in parts.items() if any(_CALLS.search(x) for _, x in lines)}
    while True:
        more = {
            name
            for name, lines in parts.items()
            if name not in heavy and any(heavy & set(_CALLED.findall(x)) for _, x in lines)
        }
        if not more:
            break
        heavy |= more
    pairs = []
    for part, lines in parts.items():
        before, seen = {}, []
        for name, rest in lines:
            operands = [x for x in re.findall(r"%([\w.\-]+)", rest) if x in before]
            before[name] = set(operands).union(*(before[x] for x in operands))
            if _CALLS.search(rest) or heavy & set(_CALLED.findall(rest)):
                pairs += [(part, other, name) for other in seen if other not in before[name]]
                seen.append(name)
    return pairs
