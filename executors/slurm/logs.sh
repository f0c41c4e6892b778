# Brings what some jobs have written since the offsets that are given. POSIX sh, after prelude.sh.
# In: JOB_DIR; MARK (no file holds it); RANK (a number, or empty: all); BUDGET (bytes, about).
#     stdin: lines "J number folder handle-or-- has-ended" and "O number attempt rank offset".
# Out, as base64 of gzip, for each piece: newline, MARK, " number attempt rank offset done more", newline, bytes.
#     done: nobody will go on with its last line. more: the file does not end with this piece.
# The batch script's own log, of all attempts, is rank 0's of attempt 0.
# shellcheck disable=SC2016,SC2153  # what stands in single quotes is for awk and perl; RANK is given

export LC_ALL=C
cd "$JOB_DIR" 2>/dev/null || exit 0

# The journals come first: what has ended by now writes no more.
# D: number, folder, how many attempts are over for good, path of the batch script's log.
jobs=$(awk '
    function first(file,   line) { if ((getline line < file) < 0) line = ""; close(file); return line }
    $1 == "J" {
        journal = $3 "/journal"; over = 0
        while ((getline line < journal) > 0) {
            split(line, word, " ")
            if (word[2] == "began") over = word[3] - 1
            else if (word[2] == "ended" || word[2] == "requeued" || word[2] == "lost") over = word[3] + 0
        }
        close(journal)
        if ($5) over = 1000000
        handle = $4 == "-" ? first($3 "/job") : $4
        log_ = $3 "/logs/slurm-" handle ".log"
        if (handle ~ /_/) { log_ = $3; sub("/tasks/[^/]*$", "/logs/" handle ".log", log_) }
        print "D", $2, $3, over, log_
        next
    }
    { print }')

files=$(printf '%s\n' "$jobs" | awk '$1 == "D" { print $3 "/logs"; if (index($5, $3)) next; print $5 }' | xargs -r sh -c '
    find "$@" -maxdepth 2 -type f -name "*.log" -printf "%s %T@ %p\n" 2>/dev/null' find)

# number, attempt, rank, offset, done, more, bytes, path
plan() {
    printf '%s\n' "$jobs" "$files" | awk -v rank="$RANK" -v budget="$BUDGET" -v now="$(date +%s)" '
        $1 == "D" { number[$3] = $2; over[$2] = $4; batch[$5] = $2; next }
        $1 == "O" { offset[$2, $3, $4] = $5; next }
        {
            if ($3 in batch) { n = batch[$3]; a = 0; r = 0 }
            else {
                folder = $3; sub("/logs/.*", "", folder)
                if (!(folder in number)) next
                # attempt-A/rank-R.log
                split(substr($3, length(folder) + 7), part, /[-\/.]/)
                if (part[1] != "attempt" || part[3] != "rank") next
                n = number[folder]; a = part[2] + 0; r = part[4] + 0
            }
            if (rank != "" && r != rank) next
            from = offset[n, a, r] + 0
            if ($1 <= from) next
            # a line that has stood unfinished for a while is shown as it is
            finished = (a ? a <= over[n] : over[n] > 99999) || now - $2 > 10
            found[++count] = n " " a " " r " " from " " finished
            size[count] = $1 - from; path[count] = $3
        }
        END {
            most = count ? int(budget / count) : 0
            if (most < 8192) most = 8192
            for (i = 1; i <= count; i++) {
                more = size[i] > most
                print found[i], more, more ? most : size[i], path[i]
            }
        }' | sort -n -k 1,1 -k 2,2 -k 3,3
}

# One process for all files, where there is Perl.
if command -v perl >/dev/null 2>&1; then
    copy() {
        perl -e '
            while (<STDIN>) {
                my @head = split / /;
                chomp(my $path = pop @head);
                my $bytes = pop @head;
                open(my $file, "<", $path) or next;
                seek($file, $head[3], 0);
                read($file, my $data, $bytes);
                print "\n$ARGV[0] @head\n$data";
            }' "$MARK"
    }
else
    copy() {
        while read -r number attempt rank offset finished more bytes path; do
            printf '\n%s %s\n' "$MARK" "$number $attempt $rank $offset $finished $more"
            dd if="$path" bs=65536 iflag=skip_bytes,count_bytes skip="$offset" count="$bytes" 2>/dev/null
        done
    }
fi
plan | copy | gzip -1 | base64
