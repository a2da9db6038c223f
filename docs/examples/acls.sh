#!/bin/sh
# Rights to read, and none to write, for three consumers of the topics: `acls.sh BOOTSTRAP_SERVERS ADMIN_PROPERTIES`.
# Each principal's consumer groups begin with its name and a dot. Nobody else may read; who calls is personal data.
set -eu

allow() {  # PRINCIPAL TOPIC...
    principal=$1
    shift
    topics=$(printf ' --topic voice.%s' "$@")
    # shellcheck disable=SC2086  # several words are meant
    kafka-acls.sh --bootstrap-server "$servers" --command-config "$admin" --add \
        --allow-principal "User:$principal" --operation Read $topics
    kafka-acls.sh --bootstrap-server "$servers" --command-config "$admin" --add \
        --allow-principal "User:$principal" --operation Read --group "$principal." --resource-pattern-type prefixed
}

servers=$1
admin=$2
allow crm sessions transcripts intents responses
allow erp intents responses
allow bi sessions transcripts intents responses control health deliveries customers
