# The front door: thin over the CMake presets in CMakePresets.json. `make help` lists the targets.
.DEFAULT_GOAL := build
PRESET ?= cpu
RANKS ?= 4
JOBS ?= $(shell nproc)
# mpirun refuses root and more ranks than cores unless it is told that both are meant.
MPIRUN := mpirun $(if $(filter 0,$(shell id -u)),--allow-run-as-root) --oversubscribe --bind-to none

.PHONY: help packages build run test test-asan test-slurm test-faults test-mutants bundle lint format tools clean fuzz

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | column -t -s '	'

packages:  ## installs the Debian packages that are missing (needs root only then)
	@tools/packages build

build: packages  ## builds ./utrain (PRESET=cpu|cuda|release|release-cuda|asan)
	@cmake --preset $(PRESET) $(if $(wildcard build/$(PRESET)/build.ninja),>/dev/null)
	@cmake --build --preset $(PRESET) --target utrain -j $(JOBS)
	@ln -sf build/$(PRESET)/utrain utrain

run: build  ## trains the quickstart on RANKS=4 ranks, to runs/quickstart/adapter
	$(MPIRUN) -np $(RANKS) ./utrain input/quickstart.toml --run.overwrite=true

test: build tools  ## builds and passes all tests (as root it installs Slurm for one of them)
	@cmake --build --preset cpu -j $(JOBS)
	@ctest --preset cpu -j 2
	@tools/.venv/bin/python -m unittest discover -s tests/tools
	@$(MAKE) --no-print-directory test-slurm
	@$(MAKE) --no-print-directory test-asan

# Slurm's daemons need root; without it the test says that it is skipped.
test-slurm: build  ## the scripts of jobs/ under a real Slurm in a temporary directory, two minutes
	@[ $$(id -u) -ne 0 ] || tools/packages slurm
	@python3 -m unittest discover -s tests/slurm

# What reads files of others, and a training step on two ranks, under AddressSanitizer and UndefinedBehaviorSanitizer.
ASAN_TESTS := json_test safetensors_test model_files_test peft_adapter_test architecture_test config_test token_data_set_test step_test checkpoint_test checkpoint_damage_test fuzz_corpus_test
test-asan: packages  ## the parsers and a 2-rank step under ASan and UBSan
	@cmake --preset asan $(if $(wildcard build/asan/build.ninja),>/dev/null)
	@cmake --build --preset asan --target utrain $(ASAN_TESTS) -j $(JOBS)
	@cd build/asan && ASAN_OPTIONS=detect_leaks=0 ctest --output-on-failure -R "^($$(echo $(ASAN_TESTS) | tr ' ' '|'))$$"

FAULT_TESTS := fault_library_test faults_kill_test faults_damage_test faults_disk_test faults_hang_test faults_save_test faults_stop_test \
  faults_resume_test refusal_test refused_places_test
test-faults: build  ## the full set of fault tests, half an hour; goes on where it was interrupted (FLAGS="--minutes 9")
	@cmake --build --preset cpu --target $(FAULT_TESTS) -j $(JOBS)
	@tools/test_faults $(FLAGS)

test-mutants: build  ## faults in utrain itself that the fault tests must find
	@tools/test_mutants

EXECS ?= 1000000
fuzz:  ## EXECS=1000000 executions of every fuzz target under libFuzzer, ASan and UBSan
	@tools/packages fuzz
	@cmake --preset fuzz $(if $(wildcard build/fuzz/build.ninja),>/dev/null)
	@cmake --build --preset fuzz -j $(JOBS)
	@tools/fuzz build/fuzz $(EXECS)

bundle: build  ## dist/utrain.tar.xz: runs on another Linux without installing anything (PRESET=release-cuda with GPUs)
	@tools/packages bundle
	@cmake --build --preset $(PRESET) --target all -j $(JOBS)
	@tools/bundle build/$(PRESET) dist/utrain $$(cd build/$(PRESET) && ls -d *_test)

lint:  ## rooms, arrows, formatting
	@tools/packages lint
	@tools/lint

format:  ## clang-format over everything
	@clang-format -i $$(git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')

tools:  ## the Python environment of tools/prepare, tools/inspect and tools/plot
	@tools/setup_venv

clean:  ## removes what was built
	rm -rf build utrain
