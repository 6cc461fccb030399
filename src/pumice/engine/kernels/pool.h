// Threads that share out units of work. A unit belongs to whoever takes it first, so that a thread which the system has
// put aside holds up no more than the unit in its hands; and whoever finds nothing to do soon sleeps.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>
#if !defined(_WIN32)
#include <unistd.h>
#endif

typedef void (*Work)(const void* context, int begin, int end);

static inline void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

class Pool {
   public:
    // Units 0:count by up to `threads` threads, this one among them; returns when all are done.
    void run(Work work, const void* context, int count, int threads) {
        if (threads <= 1 || count <= 1 || busy_.exchange(true, std::memory_order_acquire)) return work(context, 0, count);
        grow(threads - 1);
        work_.store(work, std::memory_order_relaxed);
        context_.store(context, std::memory_order_relaxed);
        wanted_.store(threads - 1, std::memory_order_relaxed);
        done_.store(0, std::memory_order_relaxed);
        const uint64_t turn = ((ticket_.load(std::memory_order_relaxed) >> 32) + 1) & 0xFFFFFFFF;
        ticket_.store(turn << 32 | uint32_t(count), std::memory_order_seq_cst);
        if (sleeping_.load(std::memory_order_seq_cst)) {
            std::lock_guard<std::mutex> lock(mutex_);
            wake_.notify_all();
        }
        take(turn);
        for (int spins = 0; done_.load(std::memory_order_acquire) < count; spins++)
            spins < SPINS ? pause_briefly() : std::this_thread::yield();
        busy_.store(false, std::memory_order_release);
    }

   private:
    static const int SPINS = 2000;  // some 30 microseconds

    // A ticket is the turn and the number of units that nobody has taken yet.
    void take(uint64_t turn) {
        uint64_t seen = ticket_.load(std::memory_order_acquire);
        while ((seen >> 32) == turn && uint32_t(seen)) {
            if (!ticket_.compare_exchange_weak(seen, seen - 1, std::memory_order_acq_rel)) continue;
            const int unit = int(uint32_t(seen)) - 1;
            work_.load(std::memory_order_relaxed)(context_.load(std::memory_order_relaxed), unit, unit + 1);
            done_.fetch_add(1, std::memory_order_release);
            seen = ticket_.load(std::memory_order_acquire);
        }
    }

    void serve(int index) {
        uint64_t last = 0;
        for (;;) {
            uint64_t seen = ticket_.load(std::memory_order_acquire);
            for (int spins = 0; (seen >> 32) == last && spins < SPINS; spins++) {
                pause_briefly();
                seen = ticket_.load(std::memory_order_acquire);
            }
            if ((seen >> 32) == last) {
                std::unique_lock<std::mutex> lock(mutex_);
                sleeping_.fetch_add(1, std::memory_order_seq_cst);
                wake_.wait(lock, [&] { return (ticket_.load(std::memory_order_seq_cst) >> 32) != last; });
                sleeping_.fetch_sub(1, std::memory_order_seq_cst);
                continue;
            }
            last = seen >> 32;
            if (index < wanted_.load(std::memory_order_relaxed)) take(last);
        }
    }

    void grow(int helpers) {
#if !defined(_WIN32)
        if (owner_ != getpid()) {  // after a fork the threads are the parent's
            helpers_ = 0;
            owner_ = getpid();
            sleeping_.store(0);
        }
#endif
        for (; helpers_ < helpers; helpers_++) std::thread(&Pool::serve, this, helpers_).detach();
    }

    std::atomic<bool> busy_{false};  // by another caller, whose threads they then are
    std::atomic<uint64_t> ticket_{0};
    std::atomic<Work> work_{nullptr};
    std::atomic<const void*> context_{nullptr};
    std::atomic<int> wanted_{0}, done_{0}, sleeping_{0};
    std::mutex mutex_;
    std::condition_variable wake_;
    int helpers_ = 0;
    long owner_ = 0;
};
