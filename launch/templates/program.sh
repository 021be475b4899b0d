#!/bin/sh
# $name of the stack $stack: what supervisor runs.
$environment
exec $command
