#!/usr/bin/env bash
# SSL++ with true labels, IIC's clusters and random labels beside Rotation alone.
# usage: sslpp_cifar10.sh gpu SOURCE RUNS [MINUTES [JOBS]]; SOURCE is CIFAR-10 as published, such as cifar-10-python.tar.gz. See experiment.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/experiment.sh" "sslpp_cifar10-${1:?give gpu, SOURCE and RUNS}" "${@:2}"
