"""All checks, in the order in which the report lists what is fine."""

from cni_py.doctor import configs, executables, firewalls, kernel, state, sysctls, units

CHECKS = (
    *kernel.CHECKS,
    *sysctls.CHECKS,
    *firewalls.CHECKS,
    *executables.CHECKS,
    *units.CHECKS,
    *state.CHECKS,
    *configs.CHECKS,
)
CODES = tuple(sorted({code for check in CHECKS for code in check.codes}))
