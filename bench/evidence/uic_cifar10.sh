#!/usr/bin/env bash
# UIC beside fixed random labels and labels of centre crops.
# usage: uic_cifar10.sh small|gpu SOURCE RUNS [MINUTES [JOBS]]; SOURCE is CIFAR-10 as published, such as cifar-10-python.tar.gz. See experiment.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/experiment.sh" "uic_cifar10-${1:?give small|gpu, SOURCE and RUNS}" "${@:2}"
