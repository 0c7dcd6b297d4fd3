#include "nibble/base/error.h"
#include "nibble/cli/command.h"
#include "nibble/cli/terminal.h"
#include "nibble/cli/text_model.h"

#include <fmt/format.h>

#include <csignal>
#include <iostream>

namespace nibble::cli {
namespace {

constexpr std::string_view help =
    "/reset       forget the conversation\n"
    "/system TEXT set the system message and forget the conversation; without TEXT none\n"
    "/adapter on  answer with the adapter; off: as the base model\n"
    "/exit        end, as Ctrl-D does; Ctrl-C ends an answer\n"
    "//...        say something that begins with /\n";

struct ChatFlags {
  AnswerFlags answer;
  std::string system;
  std::uint32_t context = 4096;
};

volatile std::sig_atomic_t interrupted = 0;

// Ctrl-C ends the answer and not the program while this lives.
class InterruptGuard {
 public:
  InterruptGuard() {
    interrupted = 0;
    before_ = std::signal(SIGINT, [](int) { interrupted = 1; });
  }
  ~InterruptGuard() { std::signal(SIGINT, before_); }
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

 private:
  void (*before_)(int);
};

class Chat {
 public:
  Chat(const TextFiles& files, const ChatFlags& flags)
      : files_(files),
        flags_(flags),
        sampler_(flags.answer.sampling.options(files.config.generation)),
        model_(files, flags.answer, flags.context) {
    begin(flags.system);
  }

  // Reads lines until the end of the input or /exit.
  void run() {
    const bool at_terminal = is_terminal(stdin) && is_terminal(stdout);
    if (at_terminal) fmt::print("/help lists what is no message.\n");
    std::string line;
    while (true) {
      if (at_terminal) fmt::print("> ");
      std::fflush(stdout);
      if (!std::getline(std::cin, line) || !take(line)) break;
    }
    if (at_terminal && !std::cin) fmt::print("\n");
    print_profile(model_.device());
  }

 private:
  void begin(const std::string& system) {
    system_ = system;
    messages_ = text::OrderedJson::array();
    if (!system_.empty()) messages_.push_back(message("system", system_));
  }

  // False where the chat ends.
  bool take(std::string line) {
    if (line.ends_with('\r')) line.pop_back();
    if (line.find_first_not_of(" \t") == std::string::npos) return true;
    if (line[0] == '/' && !line.starts_with("//")) return command(line);
    reply(line[0] == '/' ? line.substr(1) : line);
    return true;
  }

  bool command(const std::string& line) {
    const auto space = line.find(' ');
    const std::string name = line.substr(0, space);
    const std::string value = space == std::string::npos ? "" : line.substr(space + 1);
    if (name == "/exit" || name == "/quit") return false;
    if (name == "/reset") {
      begin(system_);
    } else if (name == "/system") {
      begin(value);
    } else if (name == "/adapter" && (value == "on" || value == "off")) {
      use_adapter(value == "on");
    } else if (name == "/help") {
      fmt::print(stderr, "{}", help);
    } else {
      fmt::print(stderr, "There is no command \"{}\".\n{}", printable(line), help);
    }
    return true;
  }

  void use_adapter(bool use) {
    if (flags_.answer.adapter.empty()) {
      fmt::print(stderr, "No adapter was given; --adapter names one.\n");
    } else {
      model_.generator().use_adapter(use);
    }
  }

  void reply(const std::string& said) {
    messages_.push_back(message("user", said));
    Tokens text = files_.prompt(messages_, nullptr, flags_.answer.thinking);
    const std::uint32_t room = model_.generator().capacity();
    if (text.size() >= room) {
      fmt::print(stderr, "The conversation has {} tokens; there is room for {}. /reset begins a new one.\n", text.size(), room);
      messages_.erase(messages_.size() - 1);
      return;
    }
    const bool terminal = is_terminal(stdout);
    const InterruptGuard guard;
    const Answer answer = model_.answer(
        text, sampler_,
        [&](std::string_view piece) {
          fmt::print("{}", terminal ? printable(piece) : std::string(piece));
          std::fflush(stdout);
        },
        [] { return interrupted != 0; });
    if (!answer.text.ends_with('\n')) fmt::print("\n");
    std::fflush(stdout);
    if (answer.end == Answer::End::full) {
      fmt::print(stderr, "The room for {} tokens is used up (--context); /reset begins a new conversation.\n", room);
    }
    messages_.push_back(message("assistant", answer.text));
  }

  const TextFiles& files_;
  const ChatFlags& flags_;
  TokenSampler sampler_;
  TextModel model_;
  std::string system_;
  text::OrderedJson messages_;
};

int run(const ChatFlags& flags) {
  const TextFiles files(flags.answer.model, flags.answer.adapter);
  check<DataError>(files.chat_template.has_value(), flags.answer.model,
                   "The model has no chat template; `nibble generate --raw` continues texts without one.");
  Chat(files, flags).run();
  return exit_done;
}

}  // namespace

void add_chat(CLI::App& app, Action& action) {
  auto flags = std::make_shared<ChatFlags>();
  CLI::App* verb = app.add_subcommand("chat", "Talks with a model, with or without an adapter.\n"
                                              "Each line of standard input is a message. Commands:\n" +
                                                  std::string(help));
  verb->add_option("--system", flags->system, "System message to begin with");
  verb->add_option("--context", flags->context, "Tokens that a conversation may have; they take memory")
      ->capture_default_str()
      ->check(CLI::Range(16u, 1u << 30));
  flags->answer.add_to(*verb);
  verb->callback([flags, &action] { action = [flags] { return run(*flags); }; });
}

}  // namespace nibble::cli
