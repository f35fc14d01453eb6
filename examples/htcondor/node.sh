#!/bin/sh
# An HTCondor execute node that joins a pool, runs its jobs, and leaves when the pool has none for it or its time is
# up. It is user_data: Vac replaces the patterns between ## and ##. The image brings HTCondor (condor_master on PATH).
#
# user_data_option_condor_host   the pool's central manager, such as cm.example.org
# user_data_option_condor_token  an IDTOKEN that may advertise a startd and a master there; keep it in a file, with
#                                user_data_file_condor_token = condor_token on the site
# user_data_option_idle_seconds  the node leaves after so long without a job; default 600
# user_data_option_job_seconds   a job may need so long: none is started with less time left; default 3600

condor_host='##user_data_option_condor_host##'
idle_seconds='##user_data_option_idle_seconds##'
job_seconds='##user_data_option_job_seconds##'
name='##user_data_machine_hostname##'
machinetype='##user_data_machinetype##'
jobfeatures='##user_data_jobfeatures_url##'
joboutputs='##user_data_joboutputs_url##'
heartbeat_file=condor-heartbeat # as heartbeat_file in the pipe
pause_seconds=60                # between heartbeats, and looks at the shutdown time
margin_seconds=300              # for HTCondor to shut down
: "${idle_seconds:=600}" "${job_seconds:=3600}"

# read_key NAME: a Job Feature, of a directory or an HTTP server.
read_key() {
    case $jobfeatures in
        http://*) curl -sf -m 60 "$jobfeatures/$1" ;;
        *) cat "$jobfeatures/$1" ;;
    esac 2>/dev/null
}

# put NAME: standard input becomes a file in the machine's joboutputs.
put() {
    case $joboutputs in
        http://*) cat >"$work/put-$1" && curl -sf -m 60 -H Expect: -T "$work/put-$1" "$joboutputs/$1" >/dev/null ;;
        *) cat >"$joboutputs/$1" ;;
    esac
}

# stop_time: when HTCondor has to begin to leave, Unix seconds; a day from now if nobody says.
stop_time() {
    end=$(read_key shutdowntime_job)
    case $end in
        '' | *[!0-9]*) echo $(($(date +%s) + 86400)) ;;
        *) echo $((end - margin_seconds)) ;;
    esac
}

# finish CODE TEXT: the shutdown message, HTCondor's logs, then the end of this machine.
finish() {
    for log in MasterLog StartLog; do
        [ ! -s "$work/log/$log" ] || tail -c 100000 "$work/log/$log" | put "$log"
    done
    echo "$*" | put shutdown_message
    case $joboutputs in
        http://*) sync && { poweroff || poweroff -f || shutdown -h now; } ;;
    esac
    exit 0
}

# leave TEXT: jobs are evicted within MachineMaxVacateTime, then this machine ends.
leave() {
    kill "$master" 2>/dev/null
    wait "$master"
    finish 100 "$@"
}

# condor_config: HTCondor's configuration.
condor_config() {
    processors=$(read_key allocated_cpu)
    memory_bytes=$(read_key max_rss_bytes)
    stop=$(stop_time)
    cat <<END
CONDOR_HOST = $condor_host
DAEMON_LIST = MASTER STARTD
LOCAL_DIR = $work
LOG = $work/log
EXECUTE = $work/execute
LOCK = $work/log
RUN = $work/log
STARTD_NAME = $name

USE_SHARED_PORT = True
CCB_ADDRESS = \$(COLLECTOR_HOST)
SEC_DEFAULT_AUTHENTICATION = REQUIRED
SEC_DEFAULT_AUTHENTICATION_METHODS = FS, IDTOKENS
SEC_DEFAULT_INTEGRITY = REQUIRED
SEC_CLIENT_AUTHENTICATION_METHODS = FS, IDTOKENS
SEC_TOKEN_DIRECTORY = $work/tokens
SEC_TOKEN_SYSTEM_DIRECTORY = $work/tokens
ALLOW_ADMINISTRATOR = root@\$(FULL_HOSTNAME) condor@\$(FULL_HOSTNAME)

NUM_CPUS = ${processors:-1}
MEMORY = $((${memory_bytes:-2147483648} / 1048576))
NUM_SLOTS_TYPE_1 = 1
SLOT_TYPE_1 = 100%
SLOT_TYPE_1_PARTITIONABLE = True

MachineStopTime = $stop
VacMachinetype = "$machinetype"
STARTD_ATTRS = \$(STARTD_ATTRS) MachineStopTime VacMachinetype
START = time() + $job_seconds < MachineStopTime
MachineMaxVacateTime = $((margin_seconds / 2))
STARTD_NOCLAIM_SHUTDOWN = $idle_seconds
MASTER.DAEMON_SHUTDOWN = (STARTD_StartTime =?= 0) && (time() - DaemonStartTime > 120)
MASTER.DAEMON_SHUTDOWN_FAST = time() > $stop
END
}

work=${TMPDIR:-/tmp}/condor.$$
mkdir -p "$work/log" "$work/execute" "$work/tokens" || exit 1
chmod 755 "$work" "$work/log"
chmod 1777 "$work/execute"
chmod 700 "$work/tokens"
if [ "$(id -u)" = 0 ] && id condor >/dev/null 2>&1; then # HTCondor's daemons run as condor where they can
    chown condor "$work" "$work/log" "$work/execute"
fi
[ -n "$condor_host" ] || finish 700 user_data_option_condor_host is not set
command -v condor_master >/dev/null || finish 700 The image has no condor_master
(
    umask 077
    cat >"$work/tokens/pool" <<'END'
##user_data_option_condor_token##
END
)
condor_config >"$work/condor_config"
CONDOR_CONFIG=$work/condor_config
export CONDOR_CONFIG

condor_master -f >"$work/log/output" 2>&1 &
master=$!
trap 'leave Told to end' TERM INT
while kill -0 "$master" 2>/dev/null; do
    date +%s | put "$heartbeat_file"
    if [ "$(date +%s)" -gt "$(stop_time)" ]; then # it may have been lowered since condor_config was written
        leave Time is up
    fi
    sleep "$pause_seconds" &
    wait $!
done
wait "$master"
status=$?
# A job leaves a log of its starter, one for each slot.
for log in "$work"/log/StarterLog.slot1_*; do
    [ ! -e "$log" ] || finish 200 Success
done
[ "$status" = 0 ] || finish 700 "condor_master ended with status $status: $(tail -n 1 "$work/log/output")"
finish 300 No job for this node
