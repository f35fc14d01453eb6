#!/bin/sh
# A pilot: asks an HTTP task queue (taskqueue.py) for tasks and runs them one by one until there are none or its
# time is up. It is user_data: Vac replaces the patterns between ## and ##. For virtual machines, Docker and
# Apptainer alike: POSIX sh, and curl or wget (busybox's will do).
#
# user_data_option_queue_url    where the queue is, such as http://queue.example.org:8080
# user_data_option_task_seconds what a task may need: none is begun with less time left; default 600

queue='##user_data_option_queue_url##'
task_seconds='##user_data_option_task_seconds##'
worker='##user_data_uuid##'
jobfeatures='##user_data_jobfeatures_url##'
joboutputs='##user_data_joboutputs_url##'
heartbeat_file=pilot-heartbeat # as heartbeat_file in the pipe
pause_seconds=20               # between heartbeats, and renewals of the task
margin_seconds=30              # before the end of this machine the task is given back
attempts=5                     # the queue is asked so often before the pilot gives up
: "${task_seconds:=600}"

have() { command -v "$1" >/dev/null 2>&1; }

# fetch URL [DATA]: GET, or POST with DATA; the answer on standard output.
fetch() {
    if have curl; then
        if [ $# -gt 1 ]; then curl -sf -m 60 --data "$2" "$1"; else curl -sf -m 60 "$1"; fi
    else
        if [ $# -gt 1 ]; then wget -q -O - --post-data "$2" "$1"; else wget -q -O - "$1"; fi
    fi
}

# read_key PLACE: a Machine/Job Feature, of a directory or an HTTP server.
read_key() {
    case $1 in
        http://*) fetch "$1" ;;
        *) cat "$1" ;;
    esac 2>/dev/null
}

# put NAME: standard input becomes a file in the machine's joboutputs.
put() {
    case $joboutputs in
        http://*) cat >"$work/put-$1" && put_http "$1" "$work/put-$1" ;;
        *) cat >"$joboutputs/$1" ;;
    esac
}

# put_http NAME FILE: busybox's wget can't PUT, but there is nc.
put_http() {
    if have curl; then
        curl -sf -m 60 -H Expect: -T "$2" "$joboutputs/$1"
        return
    fi
    server=${joboutputs#http://}
    path=/${server#*/}
    server=${server%%/*}
    host=${server%:*}
    port=${server#"$host"}
    port=${port#:}
    {
        printf 'PUT %s/%s HTTP/1.0\r\nHost: %s\r\n' "$path" "$1" "$server"
        printf 'Content-Length: %s\r\n\r\n' "$(wc -c <"$2" | tr -d ' ')"
        cat "$2"
        sleep 1 # nc must not close before the answer has come
    } | nc "$host" "${port:-80}" >/dev/null
}

# seconds_left: until this machine has to be gone. The time may be lowered while it runs, so it is read each time.
seconds_left() {
    end=$(read_key "$jobfeatures/shutdowntime_job")
    case $end in
        '' | *[!0-9]*) echo 86400 ;;
        *) echo $((end - $(date +%s))) ;;
    esac
}

# finish CODE TEXT: the shutdown message, then the end of this machine.
finish() {
    [ -z "$keeper" ] || kill "$keeper" 2>/dev/null
    echo "$*" | put shutdown_message
    rm -rf "$work"
    case $joboutputs in
        http://*) sync && { poweroff || poweroff -f || shutdown -h now; } ;;
    esac
    exit 0
}

# keep: renews heartbeat and task in the background; ends the task when this machine's time is up. It is gone with
# $work, too: a signal that comes while a shell begins may be lost.
keep() {
    while [ -d "$work" ]; do
        date +%s | put "$heartbeat_file"
        if [ -s "$work/task" ]; then
            read -r task process <"$work/task"
            fetch "$queue/renew?worker=$worker&task=$task" '' >/dev/null
            if [ "$(seconds_left)" -lt "$margin_seconds" ] && touch "$work/late"; then
                kill "$process" 2>/dev/null
            fi
        fi
        sleep "$pause_seconds"
    done
}

# tell WHAT: tells the queue of the task, again if it doesn't answer.
tell() {
    attempt=0
    until fetch "$queue/$1" '' >/dev/null; do
        attempt=$((attempt + 1))
        [ "$attempt" -lt "$attempts" ] || return 1
        sleep "$attempt"
    done
}

# claim: the queue's answer in $work/answer, empty if there is no task.
claim() {
    attempt=0
    until fetch "$queue/claim?worker=$worker" '' >"$work/answer"; do
        attempt=$((attempt + 1))
        [ "$attempt" -lt "$attempts" ] || return 1
        sleep "$attempt"
    done
}

# run TASK: runs the command in $work/command; 1 if time was up before it ended.
run() {
    sh "$work/command" </dev/null >"$work/output" 2>&1 &
    process=$!
    echo "$1 $process" >"$work/now"
    mv "$work/now" "$work/task"
    wait "$process"
    status=$?
    rm -f "$work/task"
    put "task-$1.log" <"$work/output"
    if [ -e "$work/late" ] && [ "$status" -gt 128 ]; then
        tell "release?worker=$worker&task=$1"
        return 1
    fi
    tell "done?worker=$worker&task=$1&status=$status" || echo "task $1: its end could not be told" >&2
}

# stop: somebody wants this machine to end now.
stop() {
    if [ -s "$work/task" ]; then
        read -r task process <"$work/task"
        kill "$process" 2>/dev/null
        tell "release?worker=$worker&task=$task"
    fi
    finish 100 Told to end
}

keeper=
work=${TMPDIR:-/tmp}/pilot.$$
mkdir -p "$work" || exit 1
trap stop TERM INT
[ -n "$queue" ] || finish 700 user_data_option_queue_url is not set
have curl || have wget || finish 500 There is neither curl nor wget
keep &
keeper=$!
tasks=0
while :; do
    if [ "$(seconds_left)" -lt "$task_seconds" ]; then
        [ "$tasks" -gt 0 ] || finish 100 There is no time for a task
        finish 200 "Success: $tasks tasks, no time for more"
    fi
    claim || finish 700 "The task queue can not be reached, after $tasks tasks"
    if [ ! -s "$work/answer" ]; then
        [ "$tasks" -gt 0 ] || finish 300 No work available
        finish 200 "Success: $tasks tasks"
    fi
    read -r task _ <"$work/answer"
    sed 1d "$work/answer" >"$work/command"
    run "$task" || finish 100 "Time is up, after $tasks tasks"
    tasks=$((tasks + 1))
done
