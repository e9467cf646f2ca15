package log

// Job is work that may block on the disk, handed out by the owner of a log.
// Run is called once, anywhere but in the owner's turn. Then Done is called
// once, in a turn of that owner.
type Job interface {
	Run()
	Done()
}

// Executor carries out jobs: a pool of goroutines in the broker, a seeded
// schedule in the simulator. Submit never blocks and never calls Run or Done
// itself before it returns.
type Executor interface {
	Submit(Job)
}
