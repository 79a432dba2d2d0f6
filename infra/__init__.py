"""What all processes stand on, and the arrows between them: event log, parameter store, embedding table."""

from infra.caches import choose_kernel_folder

choose_kernel_folder()  # before anything imports numba
