# Few targets; .ci/run is the whole check.
.PHONY: build test lint fuzz bench nightly figures

build: ## static binary in dist/
	CGO_ENABLED=0 go build -trimpath -tags release -ldflags '-s -w' -o dist/lockstep .

test: ## what the README says
	go test ./...

lint:
	bash .ci/run format vet static

fuzz: ## every target for 20 seconds
	bash .ci/run fuzz

bench: ## micro-benchmarks of the core
	go test -run '^$$' -bench . -benchmem ./wire ./segment ./log ./partition ./replication ./client

nightly: ## full counts: hours
	go test -race -tags invariants -timeout 60m ./...
	go test -tags release ./server -run '^TestAttackers$$' -v -attack.full
	go test ./server -run '^TestF12' -v -timeout 1h -full.runs 200
	go test ./server -run '^TestF24' -v -attack.floods 100
	go test ./server -run '^TestF23' -v -slow.consumers 1000
	go test ./fuzz -run '^TestF24' -v -timeout 1h -fd.floods 100
	go test ./fuzz -run '^TestSimulation' -v -timeout 8h -sim.duration 2h -sim.tries 0
	go test ./fuzz -run '^TestClusterOfProcesses' -v -timeout 2h -cluster.faults 1000
	go test ./fuzz -run '^TestF15_Nothing' -v -timeout 1h -faults.count 11 -faults.for 30m
	go test ./fuzz -run '^TestF26' -v -timeout 1h -upgrade.runs 20
	go test ./fuzz -run '^TestRequirements' -v -timeout 1h -requirements.kills 50 -requirements.temporary 10000
	go test ./fuzz -run '^TestRX5_Bits' -v -timeout 2h -repair.flips 500
	go test ./fuzz -run '^TestF14_ADeposed' -v -timeout 1h -minority.rounds 100
	go test ./fuzz -run '^Test(F21|F22)' -v -timeout 1h -storm.partitions 2000 -stopped.bytes 8589934592
	go test ./fuzz -run '^TestR_SIB_10' -v -timeout 1h -count 20 -matrix.power
	go test ./fuzz -run '^TestF2_OnePowerCut' -v -timeout 2h -split.rounds 500
	go test ./fuzz -run '^TestFleet' -v -timeout 4h -fleet.duration 2h
	go test ./cluster -run '^TestWhateverHappens' -timeout 1h -restless.runs 200000
	go test ./fuzz -run '^TestCouncil$$' -v -timeout 1h -council.seeds 5000
	go test ./fuzz -run '^TestCouncilsVoters$$' -v -timeout 1h -voters.seeds 5000
	go test ./fuzz -run '^TestRuleR5_NamesOfAFleet' -v -timeout 1h -names.seeds 20000
	go test ./fuzz -run '^(TestRuleQ1_WorkersOfAFleet|TestF17_PlannedMovesOfAFleet)$$' -v -timeout 2h -workers.seeds 10000
	go test ./fuzz -run '^TestF17_GroupsOfAFleet' -v -timeout 2h -groups.duration 1h
	go test ./fuzz -run '^TestF17_(Handovers|Catches_Handovers)' -v -timeout 4h -handover.count 1000 -handover.moves 200
	go test ./fuzz -run '^TestRuleQ3_AKilled' -v -timeout 1h -redrive.kills 1000 -redrive.nodes 3
	go test ./fuzz -run '^TestR_IS_7_APaused' -v -timeout 1h -paused.leaders 50
	go test ./fuzz -run '^TestR_LSN_4' -v -timeout 1h -count 10 -listener.pause 60s
	go test ./fuzz/groupmodel -run '^TestGroupsModel' -v -timeout 4h -model.more 1 -model.states 20000000 -model.walks 500000 -model.seed 0
	go test ./fuzz -run '^Test(F1_PowerCutsOf|F10_Disks|F14_Hist|F18_Members)' -v -timeout 2h -fleet.blackouts 1000 -fleet.wipes 200 -fleet.replacements 2000 -fleet.histories 1000
	go test -tags release ./partition/group -run '^(TestTheStateOfMany|TestReturnedRecordsAreBounded)' -v -size.groups 10000 -size.gaps 10000000 -size.returned
	go test -tags release ./partition -run '^TestPublishersThat' -v -publishers.seen 1000000
	go test ./fuzz -run '^TestFile' -v -timeout 1h -file.bytes 1073741824
	go test ./fuzz -run '^TestKill' -v -timeout 4h -kill.cycles 10000
	go test ./fuzz -run '^TestF1_' -v -timeout 4h -power.cycles 10000
	go test ./fuzz -run '^TestF16_Zombie' -v -timeout 8h -count 10 -zombie.handovers 200 -zombie.long 2
	go test ./server -run '^TestF13_AStalledPartition' -v -stall.for 30s
	go test ./fuzz -run '^TestF3' -v -timeout 1h -rot.flips 10000 -rot.seed 0
	go test ./partition/group -run '^TestR_BRK_11' -v -leader.publishers 1000000
	go test ./partition/group -run '^TestLeaderKeepsItsPromises' -v -timeout 2h -leader.seeds 20000
	go test ./lockstest -run '^(TestRequirementsOfGroups|TestR_MQC_13)' -v -timeout 2h -requirements.transfers 100 -requirements.records 100000 -requirements.backlog 10000000 -requirements.outage 30m
	go test ./lockstest -run '^TestR_X_1_No' -v -timeout 30m -churn.for 10m
	go test ./lockstest -run '^TestF3' -v -timeout 1h -rot.flips 1000
	go test ./lockstest -run '^TestMany' -v -timeout 1h -storm.members 10000 -storm.groups 10000
	go test ./server -run '^TestF11' -v -map.points 1000
	go test ./server -run '^TestF4_NoDir' -v -timeout 1h -meta.flips 1000 -meta.nodes 300
	go test ./fuzz -run '^TestF20' -v -timeout 1h -state.runs 10000
	go test ./fuzz -run '^TestMetamorphic$$' -v -timeout 2h -meta.seeds 1000
	go test ./log -run '^TestF25_Readers' -v -timeout 1h -race.fetches 1000000
	go test ./replication -run '^TestF7' -v -timeout 4h -replication.seeds 20000
	go test ./replication -run '^TestF9' -v -timeout 1h -strict.cuts 10000
	go test ./log -run '^TestF5' -v -timeout 4h -faultentries 300
	go test ./server -run '^TestRuleL7' -v -timeout 30m -erase-mib 512
	go test ./log -run '^Test(F6|F7|F8|RuleP2_Logs)' -v -timeout 4h -crashseeds 10000

figures: build ## the table of docs/performance.md
	dist/lockstep bench run all --rounds 5
	go test -tags release ./bench -run '^$$' -bench Raw
	go test -tags release ./lockstest -run '^TestFigure_' -v -count=1 -timeout 2h -parallel 20 -figure.intervals 20
	FUZZ_PROGRAM=$(CURDIR)/dist/lockstep go test ./fuzz -run '^TestFigure_' -v -count=1 -timeout 2h -figure.kills 100 -figure.transfers 100 -figure.partitions 2000 -figure.idle 30s -figure.behind 10737418240 -figure.baseline 20s -figure.catchups 5 -figure.blocked 10000000 -figure.keys 10000 -figure.rounds 9 -figure.takeovers 20 -figure.nacks 9100000 -figure.letters 50000
