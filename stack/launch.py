"""Becomes a server: drops privileges, asks the kernel to be killed with the parent, replaces this process.

Run as a script between `stack.processes` and the server. Arguments: the parent's process id, the signal to
die by, user and group id (-1 to keep them), the program, its arguments. A script and not a `preexec_fn`,
because code between fork and exec may deadlock in a process that has threads.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Replace this process by the program, or exit with a line on standard error."""
    parent, death_signal, uid, gid = (int(argument) for argument in sys.argv[1:5])
    program = sys.argv[5]
    try:
        if uid != -1:
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)
        # A change of user clears the death signal, so it is set after it.
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
        if os.getppid() != parent:  # it died before the request, so no signal will come
            sys.exit("the parent is gone")
        os.execv(program, sys.argv[5:])
    except OSError as error:
        sys.exit(f"{program} can't be started: {error}")


if __name__ == "__main__":
    main()
